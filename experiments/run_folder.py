"""The folder of a run: what stands where, and how it is found again."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..core.errors import RunError, SpecError
from ..core.files import read_json, write_bytes, write_json
from ..evaluators.measurement import Measurement
from ..search.knowledge import Knowledge
from ..spaces.layer import Layer, layers_from_json, layers_to_json
from ..spaces.policy import Policy
from ..spaces.space import Space
from ..spaces.space_json import space_from_json, space_to_json
from .result_file import ResultFile
from .spec import Spec


@dataclass(frozen=True, slots=True)
class RunFolder:
    """``runs/NAME``: spec.yaml, journal.jsonl, policy.json, pareto.json, artifact/, log.txt, and what it began with."""

    path: Path

    @classmethod
    def create(cls, runs: Path, name: str) -> "RunFolder":
        """Makes ``runs/name``, or ``name-2`` … when that exists.

        Raises:
            RunError: the folder cannot be made.
        """
        n = 1
        while True:
            path = runs / (name if n == 1 else f"{name}-{n}")
            try:
                path.mkdir(parents=True)
                return cls(path)
            except FileExistsError:
                n += 1
            except OSError as error:
                raise RunError(f"run folder {path} cannot be made: {error}; choose another with --runs") from error

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Opens an existing run.

        Raises:
            RunError: there is no run.
        """
        if not (path / "spec.yaml").is_file():
            raise RunError(f"{path} is not a run folder: it has no spec.yaml")
        return cls(path)

    @property
    def spec(self) -> Path:
        """The spec as it was resolved."""
        return self.path / "spec.yaml"

    @property
    def journal(self) -> Path:
        """One record a line."""
        return self.path / "journal.jsonl"

    @property
    def policy(self) -> Path:
        """The best policy."""
        return self.path / "policy.json"

    @property
    def pareto(self) -> Path:
        """The trade-off of latency, accuracy and size."""
        return self.path / "pareto.json"

    @property
    def result(self) -> Path:
        """The final table, as numbers."""
        return self.path / "result.json"

    @property
    def artifact(self) -> Path:
        """The folder of the deployable model."""
        return self.path / "artifact"

    def write_spec(self, spec: Spec) -> None:
        """Writes spec.yaml."""
        content = spec.to_json()
        if "space" not in spec.model_fields_set:
            # written down it would count as the user's own, in which an option that no layer takes is an error
            del content["space"]
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_bytes(self.spec, text.encode())

    def write_import_folder(self, folder: Path) -> None:
        """Notes the folder of the user's spec: from there model and data are imported when the run is resumed."""
        write_json(self._imports, {"folder": str(folder)})

    def read_import_folder(self) -> Path | None:
        """Returns what `write_import_folder` wrote; None where nothing was.

        Raises:
            RunError: the file is damaged.
        """
        if not self._imports.is_file():
            return None
        content = read_json(self._imports, noun="import folder", error=RunError)
        if not isinstance(content, dict) or not isinstance(content.get("folder"), str):
            raise RunError(f"{self._imports} is damaged; remove it, and resume in the folder of the spec")
        return Path(content["folder"])

    def write_original(self, measurement: Measurement) -> None:
        """Writes the original's measurement, to which relative bounds refer."""
        write_json(self._original, measurement.to_json())

    def read_original(self) -> Measurement | None:
        """Returns what `write_original` wrote; None where the run did not come so far.

        Raises:
            RunError: the file is damaged.
        """
        if not self._original.is_file():
            return None
        content = read_json(self._original, noun="original's measurement", error=RunError)
        try:
            return Measurement.from_json(content)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise RunError(f"{self._original} is damaged: {error!r}; start a new search") from error

    def write_knowledge(self, knowledge: Knowledge) -> None:
        """Writes what was known before the first trial: resuming must not know more."""
        write_json(self._knowledge, knowledge.to_json())

    def read_knowledge(self) -> Knowledge | None:
        """Returns what `write_knowledge` wrote; None where the run did not come so far.

        Raises:
            RunError: the file is damaged.
        """
        if not self._knowledge.is_file():
            return None
        return Knowledge.from_json(read_json(self._knowledge, noun="knowledge of a run", error=RunError))

    def write_space(self, space: Space, layers: Sequence[Layer]) -> None:
        """Writes the space, so that the records can be read without the model."""
        write_json(self._space, {**space_to_json(space), "layers": layers_to_json(layers)})

    def read_space(self) -> Space | None:
        """Returns the space that `write_space` wrote; None where the run did not come so far.

        Raises:
            RunError: the file is damaged.
        """
        if not self._space.is_file():
            return None
        return space_from_json(read_json(self._space, noun="space of a run", error=RunError))

    def read_layers(self) -> tuple[Layer, ...]:
        """Returns the layers that `write_space` wrote, in the order of the graph; none before the run came so far.

        Raises:
            RunError: the file is damaged.
        """
        if not self._space.is_file():
            return ()
        content = read_json(self._space, noun="space of a run", error=RunError)
        try:
            return layers_from_json(content["layers"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"the space of {self.path} is damaged: {error!r}; start a new search") from error

    def write_result(self, result: ResultFile) -> None:
        """Writes the final table and the winner."""
        write_json(self.result, result.to_json())

    def read_result(self) -> ResultFile | None:
        """Returns what `write_result` wrote; None before the end.

        Raises:
            RunError: the file is damaged.
        """
        if not self.result.is_file():
            return None
        content = read_json(self.result, noun="result of a run", error=RunError)
        try:
            return ResultFile.from_json(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{self.result} is damaged: {error!r}; resume the run") from error

    def write_starts(self, starts: Sequence[tuple[str, Policy]]) -> None:
        """Writes the policies with which the search starts."""
        write_json(self._starts, {"starts": [[label, policy.to_json()] for label, policy in starts]})

    def read_starts(self) -> tuple[tuple[str, Policy], ...] | None:
        """Returns what `write_starts` wrote; None where the run did not come so far.

        Raises:
            RunError: the file is damaged.
        """
        if not self._starts.is_file():
            return None
        content = read_json(self._starts, noun="starts of a run", error=RunError)
        try:
            return tuple((str(label), Policy.from_json(policy)) for label, policy in content["starts"])
        except (KeyError, TypeError, ValueError, SpecError) as error:
            raise RunError(f"{self._starts} is damaged: {error!r}; start a new search") from error

    def write_json(self, path: Path, value: Mapping[str, Any]) -> None:
        """Writes one of the run's JSON files."""
        write_json(path, dict(value))

    @property
    def _imports(self) -> Path:
        return self.path / "imports.json"

    @property
    def _knowledge(self) -> Path:
        return self.path / "knowledge.json"

    @property
    def _space(self) -> Path:
        return self.path / "space.json"

    @property
    def _starts(self) -> Path:
        return self.path / "starts.json"

    @property
    def _original(self) -> Path:
        return self.path / "original.json"

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Writes what the library logs at INFO and above to log.txt."""
        logger = logging.getLogger("trimtab")
        handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            handler.close()
