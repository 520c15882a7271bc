"""What to measure: one node in one workload at one size, frozen, hashable, with a stable readable id."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Device = Literal["cpu", "cuda"]
DType = Literal["float64", "float32", "float16", "bfloat16"]
Encoding = Literal["direct", "poisson"]
Option = str | int | float | bool | None


class Case(BaseModel):
    """One point of a sweep: node x workload x timesteps x batch x depth x dtype x device.

    Args:
        node: registry name of the node, such as `lif` or `revlif`; see `revsnn-bench nodes`.
        workload: registry name of the workload: `layer` (one node, nothing else) or a network.
        timesteps: T, the number of time steps.
        batch: B, samples per step.
        shape: features of one sample, such as `(65536,)` or `(16, 8, 8)`.
        depth: number of blocks, for workloads that stack them.
        dtype: floating-point type of input, state and parameters.
        device: where the case runs.
        node_options: constructor arguments of the node that differ from its defaults.
        seed: seeds the parameters and the input.
        epochs: passes over the training data before the test; 0 leaves it to the settings of the run.
        encoding: how a network is shown an image: the same at every step, or as random spikes at a rate of its
            brightness.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    workload: str = "layer"
    timesteps: int = Field(default=8, ge=1)
    batch: int = Field(default=8, ge=1)
    shape: tuple[int, ...] = (4096,)
    depth: int = Field(default=1, ge=1)
    dtype: DType = "float32"
    device: Device = "cpu"
    node_options: tuple[tuple[str, Option], ...] = ()
    seed: int = 0
    epochs: int = Field(default=0, ge=0)
    encoding: Encoding = "direct"

    @field_validator("shape", mode="before")
    @classmethod
    def _shape_of_a_single_size(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @field_validator("shape")
    @classmethod
    def _shape_is_positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError(
                f"`shape` must be one or more sizes of at least 1; got {value}. It is the shape of one "
                "sample at one step, without time and batch. Pass for example (4096,) or (16, 8, 8)."
            )
        return value

    @field_validator("node_options", mode="before")
    @classmethod
    def _options_in_a_stable_order(cls, value: Any) -> Any:
        pairs = value.items() if isinstance(value, dict) else value
        return tuple(sorted((str(name), option) for name, option in pairs))

    @property
    def options(self) -> dict[str, Option]:
        """Constructor arguments of the node, as keywords."""
        return dict(self.node_options)

    @property
    def variant(self) -> str:
        """The node with its options: what a row of a comparison is called."""
        if not self.node_options:
            return self.node
        return f"{self.node}[{','.join(f'{name}={option}' for name, option in self.node_options)}]"

    @property
    def size(self) -> str:
        """Timesteps, batch, features and depth: the point of the sweep."""
        depth = f"-D{self.depth}" if self.depth > 1 else ""
        return f"T{self.timesteps}-B{self.batch}-N{'x'.join(map(str, self.shape))}{depth}"

    @property
    def id(self) -> str:
        """Stable readable name, such as `layer/revlif/T16-B8-N65536/float32/cpu`."""
        seed = f"/seed{self.seed}" if self.seed else ""
        epochs = f"/epochs{self.epochs}" if self.epochs else ""
        encoding = "" if self.encoding == "direct" else f"/{self.encoding}"
        return f"{self.workload}/{self.variant}/{self.size}/{self.dtype}/{self.device}{encoding}{epochs}{seed}"

    @property
    def point(self) -> "Case":
        """The same case with the standard LIF on the same backend: what ratios are taken against."""
        backend = tuple(option for option in self.node_options if option[0] == "backend")
        return self.model_copy(update={"node": "lif", "node_options": backend})

    def __str__(self) -> str:
        return self.id
