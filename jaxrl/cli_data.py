"""`jaxrl data`: look at data sets, change their format, record new ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from jaxrl.terminal import compilation_cache, errors, print_table

app = typer.Typer(help="Data sets of recorded play: info, convert, record.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="DATA", help="An .hdf5 file, a Minari folder, or a local Minari id.")]
Out = Annotated[Path, typer.Option(help="An .hdf5 file (d4rl), or a folder ending in -v0 or so (minari).")]
Format = Annotated[str, typer.Option(help="minari or d4rl; by default what --out looks like.")]


@app.command()
def info(name: Name) -> None:
    """Read a whole data set, check every episode, and show what it holds and where it comes from."""
    with errors():
        from jaxrl.data.dataset import summary
        from jaxrl.data.files import open_recording

        recording = open_recording(name)
        header = recording.header
        facts = {key: value for key, value in header.facts.items() if key not in ("observation_space", "action_space")}
        rows = summary(recording, progress=True)
        rows |= {"observations": header.observation_space, "actions": header.action_space}
        rows |= {key: value if isinstance(value, str | float) else json.dumps(value) for key, value in facts.items()}
        print_table([{"name": key, "": value} for key, value in rows.items()])


@app.command()
def convert(name: Name, out: Out, format: Format = "") -> None:
    """Write a data set in the other format; every number stays what it is."""
    with errors():
        from jaxrl.data.files import open_recording, writer

        print(writer(format or _format(out))(open_recording(name), out))


@app.command()
def record(
    source: Annotated[str, typer.Argument(help="A run folder or checkpoint; with --policy an environment's name.")],
    out: Out,
    options: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Of the environment.")] = None,
    policy: Annotated[str, typer.Option(help="random, or package.module:function for one of your own.")] = "",
    format: Format = "",
    episodes: Annotated[int, typer.Option(help="How many.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the episodes; none is one of an evaluation.")] = 0,
    deterministic: Annotated[bool, typer.Option(help="Most probable or sampled actions.")] = False,
    max_steps: Annotated[int, typer.Option(help="Cut longer episodes; 0: the environment's own bound.")] = 0,
    expert: Annotated[Path | None, typer.Option(help="A run whose score is 100; random play is 0.")] = None,
) -> None:
    """Let a trained or scripted policy play, and write what happens as a data set."""
    with errors(), compilation_cache():
        from jaxrl.data.files import writer
        from jaxrl.run import record as recorder
        from jaxrl.run.config import ConfigError, parse_grid

        write = writer(format or _format(out))
        given = {key: values[0] for key, values in parse_grid(options or []).items()}
        if given and not policy:
            raise ConfigError("a run plays in its own environment: options go with --policy")
        player = recorder.scripted_player(source, given, policy) if policy else recorder.trained_player(source)
        recording = recorder.record(
            player, episodes, seed=seed, deterministic=deterministic, max_steps=max_steps,
            expert=None if expert is None else recorder.trained_player(expert),
        )  # fmt: skip
        print(f"{write(recording, out)}: mean return {recording.header.facts['mean_return']:.4g}")


@app.command()
def produce(
    run: Annotated[Path, typer.Argument(help="A run folder of sac or another algorithm with a replay buffer.")],
    out: Annotated[Path, typer.Option(help="A folder for expert, medium, medium-replay and random.")],
    steps: Annotated[int, typer.Option(help="Of medium and of random, at least.")] = 200_000,
    expert_episodes: Annotated[int, typer.Option(help="Of expert.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the episodes; none is one of an evaluation.")] = 0,
) -> None:
    """Make the four usual data sets of one training run, each in both formats."""
    with errors(), compilation_cache():
        from jaxrl.data.files import open_recording
        from jaxrl.run.production import produce

        written = produce(run, out, num_steps=steps, expert_episodes=expert_episodes, seed=seed)
        for path in written.values():
            recording = open_recording(path)
            mean = recording.header.facts["mean_return"]
            print(f"{path}: {recording.lengths.sum()} steps, mean return {mean:.4g}")


def _format(out: Path) -> str:
    return "d4rl" if out.suffix in (".hdf5", ".h5") else "minari"
