"""One build: from a Dockerfile, step by step, to an image."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mooring.kit import references, subjects
from mooring.kit.bus import Bus
from mooring.kit.errors import EngineError, InvalidParameter, NotFound
from mooring.kit.faults import point
from mooring.kit.models.base import Done
from mooring.kit.models.build import BuildOptions, KeepImages
from mooring.kit.models.image import HistoryEntry, ImageRecord, Layer, TagImage
from mooring.runtime.images import platforms
from mooring.runtime.images.store import ImageStore

from . import config as configs
from .arguments import Arguments
from .config import Config, Step, build_key, nop
from .context import Context
from .copies import Copies
from .dockerfile.errors import DockerfileError, StepError
from .dockerfile.instructions import Arg, Command, Copy, From, Pairs, Program, Words
from .dockerfile.stages import Dockerfile, Stage, stage_index, trigger
from .dockerfile.words import expand
from .images import Cache, ImageIndex, child, now
from .layers import Layers
from .output import Output
from .run import BuildContainer, RunFailed
from .scripts import script

_SHORT = 12
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NO_HEALTHCHECK = {"Test": ["NONE"]}


@dataclass(frozen=True, slots=True)
class Parts:
    """What every build of this process has."""

    bus: Bus
    node: str
    store: ImageStore
    index: ImageIndex
    state_dir: Path
    archive_limit: int


class State:
    """Where a stage has come to."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.image: ImageRecord | None = None
        self.config: Config = {}
        self.author = ""
        self.cmd_set = False


class Build:
    """Carries out one Dockerfile. `run` once."""

    def __init__(
        self,
        parts: Parts,
        build_id: str,
        options: BuildOptions,
        job: Path,
        output: Output,
        context: Context,
    ) -> None:
        self._parts = parts
        self._id = build_id
        self._options = options
        self._output = output
        self._index = parts.index
        self._layers = Layers(parts.store, job)
        self._arguments = Arguments(options.arguments)
        self._stages: list[State] = []
        self._unrecorded: dict[str, ImageRecord] = {}
        self._step = 0
        self._total = 0
        self._escape = "\\"
        self._cache = Cache(parts.index, (), enabled=False, limited=False)
        self._copies = Copies(self._layers, context, job, parts.archive_limit)

    async def run(self, dockerfile: Dockerfile) -> str:
        """Build every stage and tag the last one's image; its id. Raises what `explain` knows."""
        self._total, self._escape = dockerfile.steps, dockerfile.escape
        self._cache = self._make_cache()
        if dockerfile.warnings:
            self._output.say_red("\n".join(dockerfile.warnings) + "\n")
        try:
            for before in dockerfile.arguments:
                self._begin_step(before)
                self._declare_before(before)
            for stage in dockerfile.stages:
                await self._stage(stage, dockerfile.stages)
            image = self._stages[-1].image
            if image is None:
                raise StepError("No image was generated. Is your Dockerfile empty?")
        except (StepError, RunFailed, EngineError, OSError):
            # The steps that did work need not be done again.
            with contextlib.suppress(EngineError):
                await self._record()
            raise
        await self._record()
        await self._finish(image)
        return image.id

    def _make_cache(self) -> Cache:
        options = self._options
        sources = [self._index.find(name) for name in options.cache_from]
        return Cache(
            self._index,
            [image for image in sources if image is not None],
            enabled=not options.no_cache,
            limited=bool(options.cache_from),
        )

    async def _finish(self, image: ImageRecord) -> None:
        if unused := self._arguments.unused():
            names = " ".join(unused)
            self._output.say(f"[Warning] One or more build-args [{names}] were not consumed\n")
        self._output.result(image.id)
        self._output.say(f"Successfully built {short(image.id)}\n")
        tagging = (
            self._parts.bus.request(
                subjects.IMAGE_TAG, TagImage(image=image.id, reference=tag), Done
            )
            for tag in self._options.tags
        )
        await asyncio.gather(*tagging)
        for tag in self._options.tags:
            self._output.say(f"Successfully tagged {references.familiar(tag)}\n")

    # --- stages ---

    def _begin_step(self, command: Command) -> None:
        self._step += 1
        self._output.say(f"Step {self._step}/{self._total} : {command.original}")
        self._output.say("\n")

    def _declare_before(self, command: Arg) -> None:
        for name, default in command.arguments:
            known = self._arguments.before()
            value = None if default is None else expand(default, known, self._escape)
            self._arguments.declare_before(name, value)

    async def _stage(self, stage: Stage, stages: Sequence[Stage]) -> None:
        state = State(stage)
        self._begin_step(stage.base)
        self._cache.enter_stage()
        self._arguments.enter_stage()
        await self._from(state, stage.base, stages)
        self._stages.append(state)
        triggers = state.config.pop("OnBuild", None) or []
        if triggers:
            self._output.say(f"# Executing {len(triggers)} build trigger")
            if len(triggers) > 1:
                self._output.say("s")
            self._output.say("\n")
        for text in triggers:
            await self._dispatch(state, trigger(text))
        for command in stage.commands:
            self._begin_step(command)
            await self._dispatch(state, command)
        if state.image is not None:
            self._output.image_id(state.image.id)

    async def _from(self, state: State, base: From, stages: Sequence[Stage]) -> None:
        known = self._arguments.before()
        name = expand(base.base, known, self._escape)
        if not name:
            raise StepError(f"base name ({base.base}) should not be blank")
        platform = expand(base.platform, known, self._escape) or self._options.platform
        # A number is no name of a stage here, other than in COPY --from.
        before = stage_index(stages[: state.stage.index], name) if not name.isdecimal() else None
        if before is not None:
            self._inherit(state, self._stages[before].image, self._stages[before].config)
        elif name == "scratch":
            self._inherit(state, None, {})
        else:
            image = await self._image(name, platform)
            self._inherit(state, image, image.config)
        shown = short(state.image.id) if state.image is not None else ""
        self._output.say(f" ---> {shown}\n")

    def _inherit(self, state: State, image: ImageRecord | None, config: Config) -> None:
        state.image = image
        state.config = {key: value for key, value in config.items() if value}
        state.author = image.author if image is not None else ""
        variables = state.config.get("Env") or []
        if not any(variable.startswith("PATH=") for variable in variables):
            state.config["Env"] = [*variables, _PATH]

    async def _image(self, name: str, platform: str) -> ImageRecord:
        """An image by name, pulled if it is not here or if that was asked for."""
        wanted = platforms.parse(platform)
        found = None if self._options.pull else self._index.find(name)
        if found is None:
            if references.is_image_id(name):
                raise NotFound(f"No such image: {name}")
            found = await self._pull(name, platform)
        if platform and found.architecture != wanted.architecture:
            actual = f"linux/{found.architecture}"
            raise InvalidParameter(
                f"image with reference {name} was found but does not match the specified "
                f"platform: wanted {platform}, actual: {actual}"
            )
        return found

    async def _pull(self, name: str, platform: str) -> ImageRecord:
        from .pulling import pull

        parts, auth = self._parts, self._options.registry_auth
        return await pull(parts.bus, parts.node, self._index, name, platform, auth, self._output)

    # --- steps ---

    async def _dispatch(self, state: State, command: Command) -> None:
        match command:
            case Arg():
                self._arg(state, command)
            case Copy():
                await self._copy(state, command)
            case Program(name="RUN"):
                await self._run_command(state, command)
            case Words(name="WORKDIR"):
                await self._workdir(state, command)
            case _:
                self._configure(state, command)

    def _variables(self, state: State) -> dict[str, str]:
        environment = state.config.get("Env") or []
        return configs.environment(state.config, self._arguments.allowed(environment))

    def _arg(self, state: State, command: Arg) -> None:
        shown: list[tuple[str, str | None]] = []
        for name, default in command.arguments:
            variables = self._variables(state)
            name = expand(name, variables, self._escape)
            value = None if default is None else expand(default, variables, self._escape)
            self._arguments.declare(name, value)
            shown.append((name, value))
        self._commit_text(state, configs.argument_text(shown))

    def _configure(self, state: State, command: Command) -> None:
        step = Step(state.config, self._variables(state), self._escape)
        text = step.apply(command, cmd_set=state.cmd_set)
        state.config = step.config
        if command.name == "CMD":
            state.cmd_set = True
        if command.name == "MAINTAINER" and isinstance(command, Words):
            state.author = command.words[0]
        self._commit_text(state, text)

    def _commit_text(self, state: State, text: str) -> None:
        command = nop(state.config, text)
        if not self._cached(state, state.config, command):
            self._commit(state, command, None, build_key(state.config, command))

    async def _workdir(self, state: State, command: Words) -> None:
        step = Step(state.config, self._variables(state), self._escape)
        path = step.workdir(command)
        state.config = step.config
        words = [*configs.shell_of(state.config), f"#(nop) WORKDIR {path}"]
        if self._cached(state, state.config, words):
            return
        layer = await asyncio.to_thread(self._layers.directory, self._chain(state), path)
        self._commit(state, words, layer, build_key(state.config, words))

    async def _copy(self, state: State, command: Copy) -> None:
        variables = self._variables(state)
        async with contextlib.AsyncExitStack() as stack:
            source = await self._copy_source(state, command, stack)
            workdir = state.config.get("WorkingDir", "")
            made = await self._copies.plan(command, variables, self._escape, workdir, source)
            words = [*configs.shell_of(state.config), made.text(command.name)]
            if self._cached(state, state.config, words):
                return
            layer = await asyncio.to_thread(
                self._copies.perform, made, self._chain(state), command.name
            )
        self._commit(state, words, layer, build_key(state.config, words))

    async def _copy_source(
        self, state: State, command: Copy, stack: contextlib.AsyncExitStack
    ) -> int | None:
        """The root file system that --from names, mounted; None for the context."""
        if not command.from_:
            return None
        name = expand(command.from_, self._variables(state), self._escape)
        before = stage_index([s.stage for s in self._stages[: state.stage.index]], name)
        if before is not None:
            image = self._stages[before].image
        elif name.lower() == state.stage.name or name == str(state.stage.index):
            raise StepError(f"invalid from flag value {name}: refers to current build stage")
        elif name.isdecimal():
            raise StepError(f"invalid from flag value {name}: index out of bounds")
        else:
            try:
                image = await self._image(name, self._options.platform)
            except EngineError as exc:
                raise StepError(f"invalid from flag value {name}: {exc.message}") from exc
        chain = [layer.chain_id for layer in image.layers] if image is not None else []
        return stack.enter_context(self._layers.mounted(chain))

    async def _run_command(self, state: State, command: Program) -> None:
        environment: list[str] = state.config.get("Env") or []
        allowed = self._arguments.allowed(environment)
        words = script(command, state.config)
        cached = self._arguments.cached(allowed)
        shown = [f"|{len(cached)}", *cached, *words] if allowed else words
        config = {key: value for key, value in state.config.items() if key != "Entrypoint"}
        if self._cached(state, config, shown):
            return
        if state.image is None:
            raise StepError(
                "there is no root file system to run a command in: "
                f'exec: "{words[0]}": stat {words[0]}: no such file or directory'
            )
        await self._record()
        given = [f"{name}={value}" for name, value in sorted(allowed.items())]
        layer = await self._run_container(state, state.image, words, environment + given, command)
        self._commit(state, shown, layer, build_key(config, shown))

    async def _run_container(
        self,
        state: State,
        image: ImageRecord,
        words: list[str],
        environment: list[str],
        command: Program,
    ) -> Layer | None:
        from mooring.kit.models.container import ContainerConfig

        config = ContainerConfig.model_validate(
            {
                **state.config,
                "Cmd": words,
                "Entrypoint": [""],
                "Env": environment,
                "Healthcheck": _NO_HEALTHCHECK,
                "Image": image.id,
                "OnBuild": None,
            }
        )
        container = BuildContainer(self._parts.bus, self._parts.node)
        keep = not self._options.remove
        try:
            await container.create(self._id, config, self._options, command.network)
            name = container.id[:_SHORT]
            self._output.say(f" ---> Running in {name}\n")
            point("build.container.created")
            code = await container.run(self._output)
            point("build.container.exited")
            if code:
                keep = not self._options.force_remove
                raise RunFailed(code, _failure(command, words, code))
            upper = self._parts.state_dir / "containers" / container.id / "upper"
            layer = await asyncio.to_thread(
                self._layers.take, self._chain(state), upper, move=not keep
            )
        except (EngineError, OSError):
            keep = not self._options.force_remove
            raise
        except asyncio.CancelledError:
            keep = False
            raise
        finally:
            if not keep:
                await _certainly(container.remove())
        if not keep:
            self._output.say(f"Removing intermediate container {name}\n")
        return layer

    # --- what a step makes ---

    def _chain(self, state: State) -> list[str]:
        return [layer.chain_id for layer in state.image.layers] if state.image is not None else []

    def _cached(self, state: State, config: Config, command: list[str]) -> bool:
        """Go on with what this step made before, if it did."""
        key = build_key(config, command)
        found = self._cache.look_up(state.image, key, command)
        if found is None:
            return False
        self._output.say(" ---> Using cache\n")
        if found.id:
            state.image = found
            self._output.say(f" ---> {short(found.id)}\n")
        else:
            layer = found.layers[0] if found.layers else None
            self._commit(state, command, layer, key, created=found.created)
        return True

    def _commit(
        self, state: State, command: list[str], layer: Layer | None, key: str, *, created: str = ""
    ) -> None:
        entry = HistoryEntry(
            created=created or now(),
            created_by=" ".join(command),
            author=state.author,
            empty_layer=layer is None,
        )
        host = platforms.host()
        record, data = child(
            state.image,
            state.config,
            layer,
            entry,
            author=state.author,
            platform=(host.architecture, host.variant),
            node=self._parts.node,
            key=key,
        )
        self._layers.write_config(record.id, data)
        self._unrecorded[record.id] = record
        state.image = record
        self._output.say(f" ---> {short(record.id)}\n")

    async def _record(self) -> None:
        """Have everything that was made so far recorded: from then on it stays."""
        if not self._unrecorded:
            return
        await asyncio.to_thread(self._layers.store_configs)
        point("build.stored")
        message = KeepImages(build=self._id, images=list(self._unrecorded.values()))
        subject = subjects.runtime(self._parts.node, subjects.RUNTIME_BUILD_KEEP)
        done = await self._parts.bus.request(subject, message, Done)
        point("build.recorded")
        self._unrecorded.clear()
        await self._index.mirror.reached(done.revision)


def short(image_id: str) -> str:
    """The twelve digits that people see."""
    return image_id.removeprefix("sha256:")[:_SHORT]


def explain(exc: Exception) -> tuple[str, int]:
    """What to tell the client of an exception that ends a build, and the code of a RUN."""
    match exc:
        case RunFailed():
            return exc.reason, exc.code
        case EngineError():
            return exc.message, 0
        case StepError() | DockerfileError():
            return str(exc), 0
        case OSError():
            return f"cannot build: {exc.strerror or exc}", 0
    return f"internal error: {exc}", 0


def _failure(command: Program, words: list[str], code: int) -> str:
    shown = " ".join(words)
    return f"The command '{shown}' returned a non-zero code: {code}"


async def _certainly(work: object) -> None:
    """Do something to its end, also while being cancelled; its failure is not what counts."""
    assert asyncio.iscoroutine(work)
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except EngineError:
        return
    except asyncio.CancelledError:
        with contextlib.suppress(EngineError):
            await task
        raise


__all__ = ["Build", "Pairs", "Parts", "explain", "short"]
