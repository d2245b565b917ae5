"""Doctor: packages and their ranges, and whether torch, torchax and JAX work with each other."""

import importlib
import importlib.metadata
import importlib.util
import platform
import tomllib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import torch
from packaging.requirements import Requirement

from recogdrive.models.bridge import functional
from recogdrive.run_folder import commit_of_checkout, device
from recogdrive.stages.doctor_findings import Finding, Level
from recogdrive.version import __version__

_OPTIONAL = {
    "ray": "scenes to score in on several machines",
    "optuna": "sweeps",
    "libtpu": "TPU",
    "jax-cuda13-plugin": "GPU",
}
_TOLERANCE = 1e-4


def requirements() -> list[Requirement]:
    """What recogdrive needs, without extras: of the installed package, else of the checkout's pyproject.toml."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        texts = tomllib.loads(project.read_text())["project"]["dependencies"]
    else:
        texts = [text for text in importlib.metadata.requires("recogdrive") or [] if "extra ==" not in text]
    return [Requirement(text) for text in texts]


def check_packages(needed: Sequence[Requirement] | None = None) -> list[Finding]:
    """Versions, and which packages are missing or outside the range that the tests ran in.

    Args:
      needed: By default what recogdrive declares.
    """
    needed = requirements() if needed is None else needed
    commit = commit_of_checkout()
    findings = [
        Finding(
            Level.OK,
            f"recogdrive {__version__}{f' at {commit}' if commit else ''}, Python {platform.python_version()} on "
            f"{platform.system()} {platform.machine()}",
        )
    ]
    bad = []
    for requirement in needed:
        installed = _version(requirement.name)
        if installed is None:
            bad.append(
                Finding(
                    Level.FATAL, f"{requirement.name} is not installed", f"pip install '{requirement}' (or: make env)"
                )
            )
        elif not requirement.specifier.contains(installed, prereleases=True):
            bad.append(
                Finding(
                    Level.WARNING,
                    f"{requirement.name} {installed} is outside the tested range {requirement.specifier}",
                    f"pip install '{requirement}' (or: make env, which takes the tested versions)",
                )
            )
    shown = ", ".join(f"{name} {_version(name)}" for name in ("jax", "torch", "torchax", "transformers", "numpy"))
    findings.append(
        Finding(Level.OK, f"{len(needed) - len(bad)} of {len(needed)} packages within their tested ranges: {shown}")
    )
    extras = [f"{name} {_version(name)} ({what})" for name, what in _OPTIONAL.items() if _version(name)]
    if extras:
        findings.append(Finding(Level.OK, f"optional packages: {', '.join(extras)}"))
    return findings + bad


def check_torchvision() -> list[Finding]:
    """Whether a torchvision is there that transformers would import and fail on."""
    if importlib.util.find_spec("torchvision") is None:
        return []
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # Its operators fail to register with whatever error torch has for that.
        found = f"torchvision {_version('torchvision')} does not import beside torch {torch.__version__}: {error}"
        return [
            Finding(Level.WARNING, found, "pip uninstall torchvision  (nothing here uses it, transformers tries to)")
        ]
    return [Finding(Level.NOTE, f"torchvision {_version('torchvision')} is installed; nothing here uses it")]


class _Probe(torch.nn.Module):
    """A little of all that the models are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(16)
        self.linear = torch.nn.Linear(16, 48)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        q, k, v = self.linear(self.norm(tokens)).chunk(3, dim=-1)
        return torch.nn.functional.gelu(torch.nn.functional.scaled_dot_product_attention(q, k, v))


def check_pairing() -> list[Finding]:
    """Runs a small torch module under `jax.jit` through the bridge: outputs and gradients must be torch's own."""
    if device()["platform"] is None:
        return []  # No device at all is a finding of its own.
    pair = f"torch {torch.__version__}, torchax {_version('torchax')}, jax {jax.__version__}"
    remedy = "pip install -c constraints.txt -e .  (or: make env); the three are tested in one combination only"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, tokens = _Probe().eval(), torch.randn(2, 5, 16)
    weights = {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}
    expected = module(tokens)
    expected.square().sum().backward()
    call = functional(module)

    def loss(parameters: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        out = call(parameters, "forward", tokens.numpy())
        return (out**2).sum(), out

    try:
        with jax.default_matmul_precision("highest"):
            (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
    except Exception as error:  # Whatever torchax raises with a torch or JAX that it was not made for.
        return [Finding(Level.FATAL, f"{pair} do not work together: {type(error).__name__}: {error}", remedy)]
    error = np.abs(np.asarray(out) - expected.detach().numpy()).max()
    for name, parameter in module.named_parameters():
        error = max(error, np.abs(np.asarray(gradients[name]) - parameter.grad.numpy()).max())
    if not error < _TOLERANCE:
        found = f"{pair}: a torch module under jax.jit is off by {error:.1e} (outputs, gradients)"
        return [Finding(Level.FATAL, found, remedy)]
    return [
        Finding(Level.OK, f"{pair}: a torch module under jax.jit gives torch's outputs and gradients ({error:.0e})")
    ]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
