"""Reads a compiled program's text: how often what runs, what the compiler expects it to cost, what chips send."""

import collections
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8,
          "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1}  # fmt: skip
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_LANES = 128
_NO_ESTIMATE = 1 << 60  # Cycles from here on are the compiler's way to say that it does not know.

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) ?\(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CYCLES = re.compile(r'estimated_cycles":"?(\d+)')
_STATED_FLOPS = re.compile(r'"cost_estimate":\{[^}]*"flops":"(\d+)"')
_OPERATION = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Instruction:
    """One line of a program: its result's type, what it does, and the rest of the line."""

    name: str
    type: str
    opcode: str
    rest: str


@dataclass(frozen=True)
class Collective:
    """Something that chips do together.

    Attributes:
      kind: One of `COLLECTIVES`.
      result_bytes: Of its result on one chip, one time; where more than a chip's part comes out, the whole.
      group: Chips that take part.
      times: How often it runs in a step.
      loops: Loops around it.
      shapes: Type of the result.
      operation: What it came from, as JAX names it.
    """

    kind: str
    result_bytes: int
    group: int
    times: int
    loops: int
    shapes: str
    operation: str

    @property
    def sent_bytes(self) -> float:
        """What each chip sends in a step, in rings."""
        share = (self.group - 1) / max(self.group, 1)
        per_time = {
            "all-gather": self.result_bytes * share,
            "all-to-all": self.result_bytes * share,
            "reduce-scatter": self.result_bytes * (self.group - 1),
            "all-reduce": 2 * self.result_bytes * share,
            "collective-permute": self.result_bytes,
        }
        return per_time[self.kind] * self.times


@dataclass
class Program:
    """What a step is made of.

    Attributes:
      cycles: The compiler's estimate of a chip's cycles, loops counted as often as they run; what it has no estimate
        for (Pallas kernels, collectives) is left out.
      cycles_by_operation: The same by JAX's name of what it came from.
      copied_bytes: Moved by copies without estimate.
      collectives: All of them.
      kernels: Pallas kernels -> runs in a step.
      kernel_flops: Pallas kernels -> operations in a step, padding included and masked blocks of causal ones not; as
        they state themselves, or reckoned for splash attention.
      windowed_einsums: Loops that stand for one product whose operand arrives in pieces.
      dynamic_loops: Loops whose number of runs depends on data.
    """

    cycles: float = 0
    cycles_by_operation: collections.Counter = field(default_factory=collections.Counter)
    copied_bytes: float = 0
    collectives: list[Collective] = field(default_factory=list)
    kernels: collections.Counter = field(default_factory=collections.Counter)
    kernel_flops: collections.Counter = field(default_factory=collections.Counter)
    windowed_einsums: int = 0
    dynamic_loops: int = 0

    def sent_bytes(self) -> dict[str, float]:
        """Kind of collective -> bytes that each chip sends in a step."""
        sent: collections.Counter = collections.Counter()
        for collective in self.collectives:
            sent[collective.kind] += collective.sent_bytes
        return dict(sent)

    def result_bytes(self) -> dict[str, float]:
        """Kind of collective -> bytes of its results on a chip in a step."""
        results: collections.Counter = collections.Counter()
        for collective in self.collectives:
            results[collective.kind] += collective.result_bytes * collective.times
        return dict(results)


def read_program(text: str, dynamic_trips: int = 1) -> Program:
    """Walks a program from its entry, through loops as often as they run.

    Args:
      text: As the TPU compiler writes it.
      dynamic_trips: Runs that a loop is counted with whose number depends on data.

    Raises:
      ValueError: The text has no entry.
    """
    computations, entry = _parse(text)
    if entry is None:
        raise ValueError("the text is no compiled program: it has no ENTRY.")
    program = Program()
    _Walk(computations, program, dynamic_trips).visit(entry, times=1, loops=0)
    return program


class _Walk:
    def __init__(self, computations: Mapping[str, list[Instruction]], program: Program, dynamic_trips: int) -> None:
        self.computations, self.program, self.dynamic_trips = computations, program, dynamic_trips

    def visit(self, computation: str, times: int, loops: int) -> None:
        for instruction in self.computations.get(computation, []):
            self._count(instruction, times, loops)
            if instruction.opcode == "while":
                self.program.windowed_einsums += "windowed_dot_general" in instruction.rest
                trips = self._trips(_called(instruction, "condition"))
                self.visit(_called(instruction, "body"), times * trips, loops + 1)
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for name in re.findall(r"(?:to_apply|calls|called_computations=\{)=?%?([\w.\-]+)", instruction.rest):
                    self.visit(name, times, loops)
            elif instruction.opcode == "fusion":
                self._fused(_called(instruction, "calls"), instruction, times, loops)

    def _count(self, instruction: Instruction, times: int, loops: int) -> None:
        found = _CYCLES.search(instruction.rest)
        cycles = int(found.group(1)) if found else 0
        if 0 < cycles < _NO_ESTIMATE:
            self.program.cycles += cycles * times
            self.program.cycles_by_operation[_operation(instruction)] += cycles * times
        elif instruction.opcode in ("copy", "copy-start"):
            both = 1 if instruction.opcode == "copy-start" else 2  # Its type holds source and target.
            self.program.copied_bytes += _size(instruction.type) * times * both
        elif instruction.opcode == "custom-call" and "tpu_custom_call" in instruction.rest:
            name = instruction.name.split(".")[0]
            self.program.kernels[name] += times
            self.program.kernel_flops[name] += _kernel_flops(instruction) * times
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            self._collective(kind, instruction, times, loops)

    def _fused(self, name: str, fusion: Instruction, times: int, loops: int) -> None:
        for instruction in self.computations.get(name, []):
            kind = instruction.opcode.removesuffix("-start")
            if kind == "all-reduce" and "all-reduce-scatter" in name:
                # Of the sum, each chip keeps its part alone: the fused form of a reduce-scatter.
                self._collective("reduce-scatter", fusion, times, loops, like=instruction)
            elif kind in COLLECTIVES:
                self._collective(kind, instruction, times, loops)
            elif instruction.opcode in ("fusion", "call", "async-start"):
                for inner in re.findall(r"(?:to_apply|calls)=%?([\w.\-]+)", instruction.rest):
                    self._fused(inner, instruction, times, loops)

    def _collective(
        self, kind: str, instruction: Instruction, times: int, loops: int, like: Instruction | None = None
    ) -> None:
        result = _size(instruction.type)
        operands = instruction.rest.split(")")[0]
        if instruction.opcode.endswith("-start"):  # Its type holds the operand too.
            result = result // 2 if kind in ("collective-permute", "all-reduce") else result - _size(operands)
        group = _group((like or instruction).rest)
        shapes = " ".join(f"{dtype}[{dims}]" for dtype, dims in _ARRAY.findall((like or instruction).type))
        self.program.collectives.append(
            Collective(kind, result, group, times, loops, shapes, _operation(like or instruction))
        )

    def _trips(self, condition: str) -> int:
        constants = [
            int(found.group(1))
            for instruction in self.computations.get(condition, [])
            if (found := re.match(r"constant\((\d+)\)", instruction.rest))
        ]
        if constants:
            return max(constants)
        self.program.dynamic_loops += 1
        return self.dynamic_trips


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str | None]:
    computations: dict[str, list[Instruction]] = {}
    current, entry = None, None
    for line in text.splitlines():
        if (start := _COMPUTATION.match(line)) is not None:
            current = start.group(2)
            computations[current] = []
            entry = current if start.group(1) else entry
        elif current is not None and (found := _INSTRUCTION.match(line)) is not None:
            result, rest = _split_type(found.group(2))
            opcode = re.match(r"([\w\-]+)\(", rest)
            computations[current].append(Instruction(found.group(1), result, opcode.group(1) if opcode else "", rest))
    return computations, entry


def _split_type(line: str) -> tuple[str, str]:
    """Type of the result, which may be a tuple of types with layouts, and what follows it."""
    if not line.startswith("("):
        result, _, rest = line.partition(" ")
        return result, rest
    depth = 0
    for position, character in enumerate(line):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return line[: position + 1], line[position + 1 :].lstrip()
    return line, ""


def _arrays(text: str) -> Iterator[int]:
    for dtype, dims in _ARRAY.findall(text):
        if dtype in _BYTES:
            count = 1
            for size in filter(None, dims.split(",")):
                count *= int(size)
            yield count * _BYTES[dtype]


def _size(text: str) -> int:
    return sum(_arrays(text))


def _kernel_flops(kernel: Instruction) -> float:
    """Operations of a kernel: those that it states, else of splash attention; 0 of any other.

    Forward are two products of queries and keys, of the backward kernels three (queries) and four (keys and values).
    """
    stated = _STATED_FLOPS.search(kernel.rest)
    if stated is not None:
        return float(stated.group(1))
    products = next((n for part, n in (("_dkv", 4), ("_dq", 3), ("_fwd", 2)) if part in kernel.name), 0)
    constraints = re.search(r"operand_layout_constraints=\{(.*?\})\}", kernel.rest)
    if "splash" not in kernel.name or constraints is None:
        return 0.0
    operands = [(dtype, [int(n) for n in dims.split(",") if n]) for dtype, dims in _ARRAY.findall(constraints.group(1))]
    queries = next(dims for dtype, dims in operands if dtype in ("bf16", "f32"))
    tokens, width = queries[-2:]
    # A mask that is computed comes with the numbers of the queries, beside their segments: it is the causal one.
    causal = sum(dtype == "s32" and dims[-2:] == [tokens, _LANES] for dtype, dims in operands) > 1
    flops = 2.0 * products * tokens * width
    for size in queries[:-1]:
        flops *= size
    return flops / 2 if causal else flops


def _called(instruction: Instruction, role: str) -> str:
    found = re.search(rf"{role}=%?([\w.\-]+)", instruction.rest)
    return found.group(1) if found else ""


def _operation(instruction: Instruction) -> str:
    found = _OPERATION.search(instruction.rest)
    return found.group(1) if found else instruction.name


def _group(rest: str) -> int:
    """Chips of a collective's group, in any of the three ways to write them; those of a permutation are pairs."""
    if (listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest)) is not None:
        return listed.group(1).count(",") + 1
    if (counted := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest)) is not None:
        return int(counted.group(2))
    if (mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest)) is not None:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh.group(1))}
        group = 1
        for axis in re.findall(r"'(\w+)'", mesh.group(2)):
            group *= sizes.get(axis, 1)
        return group
    return 2
