"""The command line: `jaxrl VERB`. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jaxrl import cli_data, cli_llm, cli_report
from jaxrl.terminal import cache_folder, compilation_cache, errors, print_table, split

app = typer.Typer(
    name="jaxrl",
    help="Reinforcement learning compiled end to end with JAX.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_llm.app, name="llm")
app.command()(cli_report.report)
app.command()(cli_report.watch)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")]
RunDir = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or one of its checkpoints.")]


@app.command()
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...", help="A TOML file or a shipped name, and settings to change."
        ),
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where to write; runs/NAME by default.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder.")] = None,
    init_from: Annotated[Path | None, typer.Option(help="Start from the parameters of this run.")] = None,
    debug: Annotated[bool, typer.Option(help="Check every operation for NaN (slow).")] = False,
) -> None:
    """Train a configuration, or continue a run exactly where it stopped."""
    config, overrides = split(arguments)
    with errors(debug), compilation_cache():
        import jaxrl
        from jaxrl.run.config import ConfigError
        from jaxrl.run.folder import RunFolder

        if (config is None) == (resume is None):
            raise ConfigError("name a configuration to train, or a run with --resume DIR (one of the two)")
        if resume is not None:
            run, folder = RunFolder(resume).load_run(overrides), resume
        else:
            assert config is not None
            run = jaxrl.load_config(config, overrides)
            folder = run_dir or Path("runs") / run.name
        _, log = jaxrl.fit(run, folder, resume=resume is not None, init_from=init_from, debug=debug)
        if log[-1].get("evaluation/return") is not None:
            played = (
                f"{log[-1]['env_steps']:,} environment steps"
                if "env_steps" in log[-1]
                else f"{run.num_updates:,} updates"
            )
            print(f"evaluation return {log[-1]['evaluation/return']:.4g} after {played}")
        print(f"run folder: {folder}   (next: jaxrl evaluate {folder}, jaxrl export {folder})")


@app.command()
def sweep(
    config: Annotated[str | None, typer.Argument(help="A TOML file or a shipped name.")] = None,
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 1,
    grid: Annotated[list[str] | None, typer.Option(help="KEY=VALUE,VALUE,... ; may be given several times.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where to write; runs/NAME-sweep by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the sweep in --run-dir.")] = False,
) -> None:
    """Train seeds and hyper-parameters side by side; floats are vmapped, static settings make groups."""
    with errors(), compilation_cache():
        import jaxrl
        from jaxrl.run.config import ConfigError, parse_grid

        if config is None:
            raise ConfigError("name a configuration to sweep")
        run = jaxrl.load_config(config, overrides or [])
        folder = run_dir or Path("runs") / f"{run.name}-sweep"
        result = jaxrl.sweep(run, parse_grid(grid or []), seeds, folder, resume=resume)
        print_table(result.table())
        print(f"sweep folder: {folder}")


@app.command()
def evaluate(
    run_dir: RunDir,
    overrides: Overrides = None,
) -> None:
    """Play the evaluation episodes with the best (or named) checkpoint."""
    with errors(), compilation_cache():
        import jaxrl
        from jaxrl.run.runner import find_checkpoint

        _, checkpoint = find_checkpoint(run_dir)
        state, run = jaxrl.load_state(checkpoint, overrides or [])
        result = jaxrl.evaluate(jaxrl.make_algorithm(run), state, run, jaxrl.load_data(run, dataset=False))
        print(f"{checkpoint}: {result}")
        per_step = {"reward": float(result.returns.sum() / result.lengths.sum())} | result.info
        print_table(
            [
                {"mean of": name, "per step": value, "at the last step": result.final.get(name, "")}
                for name, value in per_step.items()
            ]
        )


@app.command()
def render(
    run_dir: RunDir,
    out: Annotated[
        Path,
        typer.Option(help="A film (.gif, .mp4), page (.html), timeline (.svg, .png, .txt) or table (.json, .csv)."),
    ],
    episode: Annotated[int, typer.Option(help="Which evaluation episode.")] = 0,
    fps: Annotated[float | None, typer.Option(help="Frames per second; by default what suits the environment.")] = None,
) -> None:
    """Show one evaluation episode as a moving picture, a timeline or a table."""
    with errors(), compilation_cache():
        from jaxrl.run.replay import film_path, render_episode

        if (path := film_path(out)) != out:
            print("MP4 needs the package imageio-ffmpeg (pip install 'jaxrl[video]'): this is a GIF", file=sys.stderr)
        returns = render_episode(run_dir, path, episode, fps)
        print(f"{path}: return {', '.join(f'{value:.4g}' for value in returns.reshape(-1))}")


@app.command()
def plot(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run folders, or a sweep's.")],
    out: Annotated[Path, typer.Option(help="A .png, .svg or .pdf file.")],
    metric: Annotated[str | None, typer.Option(help="A column of metrics.jsonl; evaluation/return by default.")] = None,
) -> None:
    """Draw learning curves."""
    with errors():
        from jaxrl.results.plot import plot_runs

        plot_runs(run_dirs, out, metric=metric)
        print(out)


@app.command()
def export(
    run_dir: RunDir,
    format: Annotated[str, typer.Option(help="stablehlo, npz or onnx.")] = "stablehlo",
    out: Annotated[Path | None, typer.Option(help="The file; DIR/policy.FORMAT by default.")] = None,
) -> None:
    """Write the policy as one file that runs without jaxrl; it is checked against the live policy first."""
    with errors(), compilation_cache():
        import jaxrl
        from jaxrl.results.export import FORMATS
        from jaxrl.run.config import ConfigError
        from jaxrl.run.runner import find_checkpoint

        if format not in FORMATS:
            raise ConfigError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}")
        folder, checkpoint = find_checkpoint(run_dir)
        state, run = jaxrl.load_state(checkpoint)
        path = out or folder.path / f"policy.{format}"
        env, _ = jaxrl.make_env(run)
        facts = {"run": run.name, "update": int(checkpoint.name), "evaluation": folder.evaluation(int(checkpoint.name))}
        try:
            data = jaxrl.load_data(run, dataset=False)
            agent = jaxrl.make_algorithm(run, env)
            jaxrl.export_policy(agent, state, path, data, format=format, spec=env, metadata=facts)
        except (ValueError, ImportError) as error:
            raise ConfigError(str(error)) from error
        policy = jaxrl.load_policy(path)
        print(f"{path}: acts like the live policy, {policy.latency() * 1e6:.0f} us per action")


@app.command()
def league(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run folders or checkpoints of one game.")],
    out: Annotated[Path | None, typer.Option(help="A folder; league in the first run's folder by default.")] = None,
    heuristics: Annotated[str, typer.Option(help='Heuristics that play too, such as "guard(2),burst(6,18)".')] = "",
    episodes: Annotated[int, typer.Option(help="Per pair; the same for all pairs.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the episodes.")] = 0,
    members: Annotated[bool, typer.Option(help="Enter the members of a population too.")] = True,
    solver: Annotated[
        str | None, typer.Option(help="Meta-solver of the ratings; rm+ for zero-sum games, else alpharank.")
    ] = None,
    game: Annotated[list[str] | None, typer.Option(help="OPTION=VALUE of the game, where the runs differ.")] = None,
    distill: Annotated[
        bool,
        typer.Option("--distill", help="First distil the mixture of the first run into one network, which plays too."),
    ] = False,
    role: Annotated[str | None, typer.Option(help="Of the distilled mixture; the run's own by default.")] = None,
) -> None:
    """Play stored policies and heuristics against each other: leader boards, payoffs and a heat map."""
    with errors(), compilation_cache():
        from jaxrl.run.league import league as play
        from jaxrl.run.league import split_names

        folder = out or run_dirs[0] / "league"
        if distill:
            from jaxrl.run.distill import distill as make_student

            student = make_student(run_dirs[0], folder / "student", role=role, seed=seed)
            print_table(student.rows())
            print(f"run folder of the student: {student.folder}   (next: jaxrl export {student.folder})")
            run_dirs = [*run_dirs, student.folder]
        result = play(
            run_dirs, folder, heuristics=split_names(heuristics), members=members, game=game or (),
            num_episodes=episodes, seed=seed, solver=solver,
        )  # fmt: skip
        for side in (0, 1):
            print_table(result.summary(side))
        print(f"league folder: {folder}")


@app.command()
def parity(
    system: Annotated[str, typer.Argument(help="cyborg")],
    path: Annotated[Path, typer.Argument(help="A folder with traces.npz and legend.json, perhaps stats.json.")],
) -> None:
    """Replay games recorded from the original and count what differs; exit status 0 only when nothing does."""
    with errors():
        from jaxrl.run.config import ConfigError

        if system != "cyborg":
            raise ConfigError(f"can check cyborg, not {system!r}")
        from envs_jax.security.cyborg.parity import check_folder

        try:
            report = check_folder(path)
        except (ValueError, OSError) as error:
            raise ConfigError(str(error)) from error
        print(report)
        if not report.passed:
            raise typer.Exit(1)


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="See `jaxrl list studies`.")],
    scale: Annotated[str, typer.Option(help="smoke (about two minutes), cpu or full.")] = "smoke",
    out: Annotated[Path | None, typer.Option(help="Where to write; runs/study-NAME-SCALE by default.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="FIELD=VALUE of the scale, such as num_seeds=3; repeatable.")
    ] = None,
) -> None:
    """Put a paper's claim to the test; the same command continues a study that was stopped."""
    with errors(), compilation_cache():
        from jaxrl.run.config import ConfigError, parse_grid
        from jaxrl.studies import find, run_study
        from jaxrl.studies.laboratory import use_all_cores

        find(name)
        use_all_cores()
        values = parse_grid(changes or [])
        for key, given in values.items():
            if len(given) != 1:
                raise ConfigError(f"--set {key} takes one value, got {given}")
        folder = out or Path("runs") / f"study-{name}-{scale}"
        report = run_study(name, scale, folder, **{key: given[0] for key, given in values.items()})
        print_table(report.claim_rows())
        print(f"report: {folder / 'report.md'}")


@app.command(name="list")
def list_(what: Annotated[str, typer.Argument(help="envs, algorithms, configs or studies")]) -> None:
    """List what there is."""
    with errors():
        from jaxrl.run.config import ConfigError

        if what == "envs":
            from envs_jax import registry

            rows = [{"name": name, "": registry.summary(name)} for name in registry.names()]
        elif what == "algorithms":
            from jaxrl.algorithms import ALGORITHMS

            rows = [{"name": name, "": line} for name, (_, line) in ALGORITHMS.items()]
        elif what == "configs":
            from jaxrl.run.config import shipped_configs

            rows = [{"name": name, "": str(path)} for name, path in shipped_configs().items()]
        elif what == "studies":
            from jaxrl.studies import STUDIES

            rows = [{"name": name, "": line} for name, (_, line) in STUDIES.items()]
        else:
            raise ConfigError(f"can list envs, algorithms, configs or studies, not {what!r}")
        print_table(rows)


@app.command()
def info(
    env: Annotated[str | None, typer.Argument(help="An environment; see `jaxrl list envs`.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write its diagram, if it has one (.svg).")] = None,
) -> None:
    """Show versions, devices and the compilation cache, or what there is to know of an environment."""
    with errors():
        from jaxrl.run.config import ConfigError
        from jaxrl.run.folder import device, versions

        if env is not None:
            try:
                print(_environment_info(env, out))
            except ValueError as error:
                raise ConfigError(str(error)) from error
            return
        print_table(
            [{"name": name, "": str(value)} for name, value in versions().items()]
            + [{"name": f"device {name}", "": str(value)} for name, value in device().items()]
            + [{"name": "compilation cache", "": str(cache_folder())}]
        )


def _environment_info(name: str, out: Path | None) -> str:
    import inspect

    import envs_jax

    env, params = envs_jax.make(name)
    spec = env.spec(params)
    parts = [
        f"{name}: {inspect.getdoc(type(env))}",
        f"observation {spec.observation_space}\naction {spec.action_space}",
        env.details(),
    ]
    if out is not None:
        diagram = env.diagram()
        if not diagram or out.suffix != ".svg":
            raise ValueError(f"--out must end in .svg, got {str(out)!r}" if diagram else f"{name!r} has no diagram")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(diagram, encoding="utf-8")
        parts.append(str(out))
    return "\n\n".join(part for part in parts if part)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
