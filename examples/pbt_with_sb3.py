"""Population-based training of Stable-Baselines3 models, every member in a process of its own.

    python examples/pbt_with_sb3.py configs/config_pbt_adversarial.yaml
    python examples/pbt_with_sb3.py configs/config_pbt_adversarial.yaml --set model.policy=MlpLstmPolicy

`MlpLstmPolicy` and its like are trained by sb3-contrib's RecurrentPPO. The parent decides and never sees a model; a
member's process trains, reports everything that a recipient inherits, and becomes another one's copy when it is told.
Statistics of VecNormalize travel with the weights. With `adversarial.enabled` in the configuration every member trains
against attacks on what it sees, and reports what these have come to.
"""

import argparse
import io
import logging
import math
import multiprocessing
import random
from multiprocessing.connection import Connection
from typing import Any

import torch

from popgraft import PBTAdversarialConfig, PBTTrainingCoordinator, PopulationMember, load_pbt_adversarial_config


def pack(value: Any) -> bytes:
    """Tensors and plain values as bytes that are read without executing any of them."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpack(blob: bytes) -> Any:
    """What `pack` packed."""
    return torch.load(io.BytesIO(blob), weights_only=True)


def build(coordinator: PBTTrainingCoordinator, member: PopulationMember, seed: int) -> Any:
    """A member's model; Stable-Baselines3 is imported in the members' processes only."""
    from sb3_contrib import RecurrentPPO
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    config = coordinator.config
    # make_vec_env puts a Monitor below VecNormalize, so that scores are in the environment's own units.
    env = make_vec_env(config.env.id, config.env.num_envs, seed=seed)
    env = VecNormalize(
        env, norm_obs=config.env.normalize_obs, norm_reward=config.env.normalize_reward, gamma=config.model.gamma
    )
    kind = RecurrentPPO if "Lstm" in config.model.policy else PPO
    model, _ = coordinator.create_member_model(member, kind, env=env, seed=seed, device="cpu", **config.model.keywords)
    return model


def member_process(connection: Connection, config: PBTAdversarialConfig, seed: int) -> None:
    """Trains one member until the parent hangs up."""
    torch.set_num_threads(1)
    coordinator = PBTTrainingCoordinator(config)
    member = PopulationMember(**connection.recv())
    model = build(coordinator, member, seed)
    steps = config.model.n_steps * config.env.num_envs
    for update in range(1, config.updates + 1):
        model.learn(steps, reset_num_timesteps=update == 1)
        episodes = [episode["r"] for episode in model.ep_info_buffer]
        score = sum(episodes) / len(episodes) if episodes else math.nan
        stats = coordinator.get_stats()  # here, where the model is
        connection.send((score, update, {name: stats[name] for name in stats if "sa_ppo/" in name}))
        connection.send_bytes(pack(coordinator.collect_parameters(model)))
        member.hyperparams = connection.recv()
        new = connection.recv_bytes()
        if new:
            coordinator.apply_exploited_parameters(model, unpack(new), member)
            model.ep_info_buffer.clear()  # those episodes were another agent's
        else:
            coordinator.apply_hyperparameters(model, member)
    model.env.close()


def main() -> PBTTrainingCoordinator:
    """Trains the population and prints how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file such as configs/config_pbt_adversarial.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a setting")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = load_pbt_adversarial_config(arguments.config, arguments.set)
    coordinator = PBTTrainingCoordinator(config, arguments.seed)
    members = coordinator.initialize_population()
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for member in members:
        ours, theirs = context.Pipe()
        process = context.Process(
            target=member_process, args=(theirs, config, arguments.seed + member.member_id), daemon=True
        )
        process.start()
        theirs.close()
        ours.send({"member_id": member.member_id, "hyperparams": member.hyperparams})
        pipes.append(ours)
        processes.append(process)
    for update in range(1, config.updates + 1):
        scores, attacks = [], []
        for member, pipe in zip(members, pipes, strict=True):
            coordinator.on_member_update_start(member)
            score, step, attacked = pipe.recv()
            attacks.append(attacked)
            scores.append(f"{score:.1f}")
            parameters = unpack(pipe.recv_bytes())
            new, hyperparams, _ = coordinator.on_member_update_end(member, score, step, model_parameters=parameters)
            pipe.send(hyperparams)
            pipe.send_bytes(b"" if new is None else pack(new))
        print(f"update {update}: " + "  ".join(scores))
    for process in processes:
        process.join()
    stats = coordinator.get_stats()
    print(f"{stats['pbt/exploitation_count']:.0f} exploits; best {coordinator.scheduler.best.performance:.1f}")
    for name in attacks[0]:
        print(f"{name} {sum(attacked[name] for attacked in attacks) / len(attacks):.4g}")
    return coordinator


if __name__ == "__main__":
    main()
