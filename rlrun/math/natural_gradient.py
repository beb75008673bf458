"""The natural gradient without the Fisher matrix: products with it, and conjugate gradient. P parameters.

Amari (1998), "Natural Gradient Works Efficiently in Learning"; that products are enough is the idea of
Martens (2010), "Deep learning via Hessian-free optimization".
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

VectorProduct = Callable[[Tensor], Tensor]


def conjugate_gradient(product: VectorProduct, b: Tensor, num_iterations: int, tolerance: float = 1e-10) -> Tensor:
    """Return x with A x = b, or near it after `num_iterations`, for a symmetric positive definite A.

    Hestenes and Stiefel (1952), "Methods of Conjugate Gradients for Solving Linear Systems". It ends when the
    residual's square is `tolerance` times that of b, and at once for b = 0.

    product: v [P] -> A v [P]; b, x: [P].
    """
    x, residual, direction = torch.zeros_like(b), b, b
    square = residual @ residual
    enough = tolerance * square
    for _ in range(num_iterations):
        if square <= enough:
            break
        image = product(direction)
        alpha = square / (direction @ image)
        x = x + alpha * direction
        residual = residual - alpha * image
        last_square, square = square, residual @ residual
        direction = residual + square / last_square * direction
    return x


def fisher_vector_product(mean_kl: Tensor, params: list[Tensor], damping: float) -> VectorProduct:
    """Return v -> (F + damping I) v, both [P], with F the Fisher information matrix of a policy.

    mean_kl is the divergence of the policy from itself, as a mean over states, with a gradient for its second place
    alone. Its second derivative is F (Schulman et al. 2015, Appendix C), so F v is the derivative of its gradient
    times v. The graph lives as long as the function.
    """
    gradient = flatten(torch.autograd.grad(mean_kl, params, create_graph=True))

    def product(vector: Tensor) -> Tensor:
        return flatten(torch.autograd.grad(gradient @ vector, params, retain_graph=True)) + damping * vector

    return product


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Return a copy of all elements as one vector, [P]."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@torch.no_grad()
def assign(params: Iterable[Tensor], vector: Tensor) -> None:
    """Put a vector of `flatten` back, in place: the parameters keep their memory, and what refers to it."""
    start = 0
    for param in params:
        param.copy_(vector[start : start + param.numel()].view(param.shape))
        start += param.numel()
