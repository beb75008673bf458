"""What a uniformly random policy earns, and the return from which Gymnasium calls an environment solved.

The random returns were measured with Gymnasium 1.4.0 (episodes seeded 0, 1, 2, ..., actions from the space's
own sampler, seeded 0) by this file itself:

    python -m rlrun.analysis.random_scores CartPole-v1 1000

The numbers of episodes: 1,000; for FrozenLake 100,000; for BipedalWalker, HalfCheetah, Hopper, Ant and Swimmer 100.
"""

import sys

# Gymnasium id: (random return, reward_threshold of its spec). Where the spec has none there is none here.
RANDOM_AND_THRESHOLD: dict[str, tuple[float, float]] = {
    "CartPole-v0": (22.2, 195.0),
    "CartPole-v1": (22.2, 475.0),
    "Acrobot-v1": (-499.1, -100.0),
    "MountainCar-v0": (-200.0, -110.0),
    "MountainCarContinuous-v0": (-33.33, 90.0),
    "LunarLander-v3": (-181.7, 200.0),
    "LunarLanderContinuous-v3": (-209.8, 200.0),
    "BipedalWalker-v3": (-102.8, 300.0),
    "BipedalWalkerHardcore-v3": (-106.2, 300.0),
    "FrozenLake-v1": (0.0140, 0.7),
    "FrozenLake8x8-v1": (0.0020, 0.85),
    "Taxi-v4": (-776.0, 8.0),
    "HalfCheetah-v5": (-282.5, 4800.0),
    "Hopper-v5": (16.67, 3800.0),
    "Ant-v5": (-48.05, 6000.0),
    "Swimmer-v5": (0.8029, 360.0),
    "InvertedPendulum-v5": (5.116, 950.0),
    "InvertedDoublePendulum-v5": (47.44, 9100.0),
    "Reacher-v5": (-42.8, -3.75),
    "Pusher-v5": (-149.3, 0.0),
}


def measure(env_id: str, num_episodes: int) -> float:
    """Return the mean return of a uniformly random policy over episodes with seeds 0, 1, 2, ..."""
    import gymnasium

    env = gymnasium.make(env_id)
    env.action_space.seed(0)
    total = 0.0
    for seed in range(num_episodes):
        env.reset(seed=seed)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total += float(reward)
            over = terminated or truncated
    return total / num_episodes


if __name__ == "__main__":
    print(f"{sys.argv[1]}: {measure(sys.argv[1], int(sys.argv[2])):.4g}")
