"""Where the arrays of a training step live: the device mesh, placement of state and batches, prefetch."""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import gin
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree, Shaped

from recogdrive.models.partition import DATA_AXIS, MODEL_AXIS, ROW_AXES, WEIGHT_AXIS, weight_spec
from recogdrive.target import target_devices

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
        available = target_devices()
        if num_devices is not None and not 1 <= num_devices <= len(available):
            raise ValueError(
                f"num_devices={num_devices}, but the devices here are {len(available)}; choose a file of gin/runtime "
                "that says no number, as fully_sharded.gin, or a number up to that."
            )
        if num_devices is not None and num_devices < len(available):
            logging.warning("%d of the %d devices are used, as num_devices says", num_devices, len(available))
        devices = np.asarray(available[:num_devices])
        self.mesh = Mesh(devices, (DATA_AXIS,), axis_types=(AxisType.Auto,))

    @property
    def num_devices(self) -> int:
        """Devices that a batch is split over: each has its own rows."""
        return math.prod(size for name, size in self.mesh.shape.items() if name in ROW_AXES)

    @property
    def _row_axes(self) -> tuple[str, ...]:
        return tuple(name for name in self.mesh.axis_names if name in ROW_AXES)

    @property
    def replicated(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch_sharding(self) -> NamedSharding:
        """Rows split over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(self._row_axes))

    @property
    def microbatch_sharding(self) -> NamedSharding:
        """(accumulation step, row, ...): rows split over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(None, self._row_axes))

    @property
    def compiler_options(self) -> dict[str, Any]:
        """What the compiler of these devices is to do otherwise than by itself."""
        if self.mesh.devices.flat[0].platform != "tpu":
            return {}
        # Else products of gathered weights become loops that pass pieces around: more is sent, in thousands of parts.
        return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}

    def as_context(self) -> contextlib.AbstractContextManager:
        """Within it, a traced program knows the mesh: kernels and constraints of models look for it there."""
        if self.mesh.size == 1:
            return contextlib.nullcontext()
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

    def over_rows(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Has every device compute its own rows, where the compiler would split something else or nothing.

        Args:
          function: Takes and returns pytrees of arrays with rows in front; rows must not know of each other.
        """
        if self.num_devices == 1:
            return function
        rows = PartitionSpec(self._row_axes)
        return jax.shard_map(function, mesh=self.mesh, in_specs=rows, out_specs=rows, check_vma=False)

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
        self._check_processes(batch_size)

    def _check_processes(self, batch_size: int) -> None:
        """Makes sure that of every batch the p-th part lies on the devices of process p, as streams deal it."""
        count = jax.process_count()
        if count == 1:
            return
        rows = batch_size // count
        placed = self.batch_sharding.devices_indices_map((batch_size,))
        found = {device.process_index for device in placed}
        if found != set(range(count)):
            raise ValueError(
                f"num_devices={self.mesh.size} leaves {count - len(found)} of {count} processes without a device; use "
                f"all {jax.device_count()}, or start fewer processes."
            )
        for device, (part,) in placed.items():
            first, end, _ = part.indices(batch_size)
            if batch_size % count or first < device.process_index * rows or end > (device.process_index + 1) * rows:
                raise ValueError(
                    f"rows {first} to {end} of a batch of {batch_size} lie on a device of process "
                    f"{device.process_index} of {count}, which reads others: devices that share a row must be of one "
                    f"process. Let model_devices divide the {jax.local_device_count()} devices of a process, with a "
                    f"batch_size that is a multiple of {count}."
                )

    def describe_batch(self, batch_size: int, accumulation_steps: int = 1) -> str:
        """How an update's rows are spread, for the log."""
        own = batch_size // (self.num_devices * accumulation_steps)
        mesh = " x ".join(f"{size} {name}" for name, size in self.mesh.shape.items())
        return (
            f"mesh {mesh}, {jax.process_count()} processes; effective batch {batch_size} rows = {own} rows a device x "
            f"{self.num_devices} devices x {accumulation_steps} accumulation steps"
        )

    def put_state(self, state: Tree) -> Tree:
        """Copies a state to its place; the caller's arrays stay valid when the copy is donated.

        Of several processes each has the whole of it, and puts the parts of its devices there.
        """
        return jax.tree.map(_copied, state, self.state_sharding(state))

    def place(self, weights: Tree) -> Tree:
        """The same for weights that are never donated: those in their place already are not copied."""
        return jax.tree.map(
            lambda leaf, sharding: leaf if _lies(leaf, sharding) else _copied(leaf, sharding),
            weights,
            self.state_sharding(weights),
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
            name: jax.make_array_from_process_local_data(
                self.batch_sharding, np.asarray(value), (batch_size, *value.shape[1:])
            )
            for name, value in batch.items()
        }


def _copied(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        placed = jax.device_put(leaf, sharding, may_alias=False)
        # On the device where it was, JAX hands over the same buffer all the same, unless that is the only one.
        return jnp.copy(placed) if isinstance(leaf, jax.Array) and len(sharding.device_set) > 1 else placed
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(jnp.copy, out_shardings=sharding)(leaf)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])


def _lies(leaf: Any, sharding: NamedSharding) -> bool:
    return isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@gin.register
class FullySharded(DataParallel):
    """Weights, moments and averages are split over the devices too (FSDP), the language model's also by heads.

    What lies where is decided by the names of the weights: `partition.DIMENSIONS`. Tensors without a line there, as the
    planner's, are split along their longest even axis; small ones are copied.

    Args:
      num_devices: Devices to use; all unless given.
      min_size: Tensors without a line in the table and with fewer entries are copied.
      replicas: Groups of devices that each hold all weights (mesh axis "data"); the weights are split within a group.
      model_devices: Devices that share a row's work by heads and hidden units (mesh axis "model").

    Raises:
      ValueError: The devices do not divide into replicas and model devices; names the nearest that do.
    """

    def __init__(
        self, num_devices: int | None = None, min_size: int = 2**16, replicas: int = 1, model_devices: int = 1
    ) -> None:
        super().__init__(num_devices)
        self._min_size = min_size
        count = self.mesh.size
        for name, value in (("replicas", replicas), ("model_devices", model_devices)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be a positive whole number.")
        if count % (replicas * model_devices):
            raise ValueError(
                f"replicas={replicas} x model_devices={model_devices} does not divide {count} devices; their product "
                f"{replicas * model_devices} may be {_nearest_divisors(count, replicas * model_devices)}."
            )
        shards = count // (replicas * model_devices)
        shape = {DATA_AXIS: replicas, WEIGHT_AXIS: shards, MODEL_AXIS: model_devices}
        # The compiler knows nothing of axes of one device, and a mesh of one device is that of `DataParallel`.
        shape = {name: size for name, size in shape.items() if size > 1} or {DATA_AXIS: 1}
        devices = np.asarray(self.mesh.devices).reshape(tuple(shape.values()))
        self.mesh = Mesh(devices, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))

    def state_sharding(self, state: PyTree) -> PyTree[NamedSharding]:
        """The placement of every leaf of a (possibly abstract) state, by the last name on the way to it."""
        return jax.tree_util.tree_map_with_path(lambda path, leaf: self._placement(_name(path), leaf.shape), state)

    def _placement(self, name: str, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(self.mesh, weight_spec(name, shape, dict(self.mesh.shape), self._min_size))


def _name(path: tuple[Any, ...]) -> str:
    """Parameter that a leaf of a state belongs to: moments and averages are kept under the weights' names."""
    return next((key.key for key in reversed(path) if isinstance(key, jax.tree_util.DictKey)), "")


def _nearest_divisors(value: int, wanted: int) -> str:
    divisors = [n for n in range(1, value + 1) if value % n == 0]
    lower = max((n for n in divisors if n <= wanted), default=None)
    upper = min((n for n in divisors if n > wanted), default=None)
    return " or ".join(str(n) for n in (lower, upper) if n is not None)


@dataclass(frozen=True)
class PlacedBatch:
    """A batch on the devices, with the stream's position right after it."""

    arrays: DeviceBatch
    stream_state_after: dict[str, Any]


class DevicePrefetch:
    """Keeps the next batches of a stream on the devices, ahead of their use."""

    def __init__(self, stream: TrainingStream, sharding: DataParallel, depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"prefetch depth={depth} must be at least 1.")
        self._stream = stream
        self._sharding = sharding
        self._depth = depth
        self._ahead: deque[PlacedBatch] = deque()

    def fill(self) -> None:
        """Fetches batches until `depth` are waiting; called while the devices are busy with a step."""
        while len(self._ahead) < self._depth:
            try:
                batch = next(self._stream)
            except StopIteration:
                raise ValueError("the training stream ended; a stream must repeat its data without end.") from None
            arrays = self._sharding.put_batch(batch, self._stream.batch_size)
            self._ahead.append(PlacedBatch(arrays, self._stream.get_state()))

    def take(self) -> PlacedBatch:
        """The next batch in the stream's order."""
        if not self._ahead:
            self.fill()
        return self._ahead.popleft()
