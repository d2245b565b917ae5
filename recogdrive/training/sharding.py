"""Where the arrays of a training step live: the device mesh, placement of state and batches, prefetch."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol, TypeVar

import gin
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree, Shaped

DATA_AXIS = "data"

Tree = TypeVar("Tree", bound=PyTree)
HostBatch = Mapping[str, Shaped[np.ndarray, "rows ..."]]
DeviceBatch = dict[str, Shaped[jax.Array, "B ..."]]


class TrainingStream(Protocol):
    """An endless iterator of batches that can say and set where it is.

    Attributes:
      batch_size: Rows of a batch, all processes together.
      samples_per_epoch: Samples after which the data starts over.
    """

    batch_size: int
    samples_per_epoch: int

    def __iter__(self) -> Iterator[HostBatch]:
        """Itself."""
        ...

    def __next__(self) -> HostBatch:
        """The next batch: this process's rows."""
        ...

    def get_state(self) -> dict[str, Any]:
        """JSON-serialisable position: what the next batch will be."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a position that `get_state` returned."""
        ...


def _nearest_multiples(value: int, unit: int) -> str:
    lower = value // unit * unit
    return f"{lower} or {lower + unit}" if lower else f"{unit}"


@gin.register
class DataParallel:
    """One mesh axis over the devices: batches are split over it, the state is copied to each device.

    Another placement is another class with the same methods; only `state_sharding` differs for models too large for
    one device.

    Attributes:
      mesh: All devices, or the first `num_devices`, along the axis `DATA_AXIS`.
    """

    def __init__(self, num_devices: int | None = None) -> None:
        available = jax.devices()
        if num_devices is not None and not 1 <= num_devices <= len(available):
            raise ValueError(
                f"num_devices={num_devices} but {len(available)} devices are there; use 1 to {len(available)}."
            )
        devices = np.asarray(available[:num_devices])
        self.mesh = Mesh(devices, (DATA_AXIS,), axis_types=(AxisType.Auto,))

    @property
    def num_devices(self) -> int:
        """Devices that a batch is split over."""
        return self.mesh.size

    @property
    def replicated(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch_sharding(self) -> NamedSharding:
        """Rows split over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(DATA_AXIS))

    @property
    def microbatch_sharding(self) -> NamedSharding:
        """(accumulation step, row, ...): rows split over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(None, DATA_AXIS))

    def state_sharding(self, state: PyTree) -> PyTree[NamedSharding]:
        """The placement of every leaf of a (possibly abstract) state: the seam for sharded presets."""
        return jax.tree.map(lambda _: self.replicated, state)

    def check_batch(self, batch_size: int, accumulation_steps: int = 1) -> None:
        """Refuses a global batch that does not split evenly.

        Raises:
          ValueError: `batch_size` is no multiple of devices times accumulation steps; names the nearest that are.
        """
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps={accumulation_steps} must be at least 1.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        unit = self.num_devices * accumulation_steps
        if batch_size % unit:
            over = f"{self.num_devices} device{'s' if self.num_devices > 1 else ''}"
            if accumulation_steps > 1:
                over += f" x {accumulation_steps} accumulation steps"
            raise ValueError(
                f"batch_size={batch_size} does not divide over {over}; use a multiple of {unit} "
                f"(e.g. {_nearest_multiples(batch_size, unit)})."
            )

    def over_rows(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, each device computing its own rows: for what the compiler could not split over them by itself.

        Args:
          function: Takes and returns trees of arrays with the rows of a batch in front; rows do not depend on each
            other.
        """
        if self.num_devices == 1:
            return function
        rows = PartitionSpec(DATA_AXIS)
        return jax.shard_map(function, mesh=self.mesh, in_specs=rows, out_specs=rows, check_vma=False)

    def put_state(self, state: Tree) -> Tree:
        """Copies a state to its place; the caller's arrays stay valid when the copy is donated."""
        return jax.tree.map(
            lambda leaf, sharding: jax.device_put(leaf, sharding, may_alias=False), state, self.state_sharding(state)
        )

    def put_batch(self, batch: HostBatch, batch_size: int) -> DeviceBatch:
        """Starts the transfer of a batch: this process's rows of a global batch of `batch_size`.

        Raises:
          ValueError: An entry's number of rows is not this process's share.
        """
        rows = batch_size // jax.process_count()
        wrong = {name: value.shape for name, value in batch.items() if value.ndim == 0 or value.shape[0] != rows}
        if wrong:
            raise ValueError(f"entries of a batch must have {rows} rows (batch_size={batch_size}), found {wrong}.")
        return {
            name: jax.make_array_from_process_local_data(self.batch_sharding, np.asarray(value))
            for name, value in batch.items()
        }


@gin.register
class FullySharded(DataParallel):
    """The same mesh, with every large tensor of the state split over the devices: weights, moments and averages.

    A tensor is split along its longest axis that divides evenly; small ones, and those without such an axis, are
    copied. The compiler gathers what a layer needs while it computes.

    Args:
      num_devices: Devices to use; all unless given.
      min_size: Tensors with fewer entries are copied.
    """

    def __init__(self, num_devices: int | None = None, min_size: int = 2**16) -> None:
        super().__init__(num_devices)
        self._min_size = min_size

    def state_sharding(self, state: PyTree) -> PyTree[NamedSharding]:
        """The placement of every leaf of a (possibly abstract) state."""
        return jax.tree.map(lambda leaf: self._placement(leaf.shape), state)

    def _placement(self, shape: tuple[int, ...]) -> NamedSharding:
        axes = [axis for axis, size in enumerate(shape) if size % self.num_devices == 0]
        if not axes or np.prod(shape) < self._min_size:
            return self.replicated
        longest = max(axes, key=lambda axis: shape[axis])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * longest, DATA_AXIS))


@dataclass(frozen=True)
class PlacedBatch:
    """A batch on the devices, with the stream's position right after it."""

    arrays: DeviceBatch
    stream_state_after: dict[str, Any]


class DevicePrefetch:
    """Keeps the next batches of a stream on the devices, ahead of their use.

    Attributes:
      wait_s: Seconds spent so far on waiting for the stream and on starting transfers.
    """

    def __init__(self, stream: TrainingStream, sharding: DataParallel, depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"prefetch depth={depth} must be at least 1.")
        self._stream = stream
        self._sharding = sharding
        self._depth = depth
        self._ahead: deque[PlacedBatch] = deque()
        self.wait_s = 0.0

    def fill(self) -> None:
        """Fetches batches until `depth` are waiting; called while the devices are busy with a step."""
        start = perf_counter()
        while len(self._ahead) < self._depth:
            try:
                batch = next(self._stream)
            except StopIteration:
                raise ValueError("the training stream ended; a stream must repeat its data without end.") from None
            arrays = self._sharding.put_batch(batch, self._stream.batch_size)
            self._ahead.append(PlacedBatch(arrays, self._stream.get_state()))
        self.wait_s += perf_counter() - start

    def take(self) -> PlacedBatch:
        """The next batch in the stream's order."""
        if not self._ahead:
            self.fill()
        return self._ahead.popleft()
