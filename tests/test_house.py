"""Version, lock and links agree with what they speak of."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fiat_jax

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]


def locked() -> list[Requirement]:
    """Every line of the lock."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def test_the_version_is_the_newest_of_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == fiat_jax.__version__


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_lock_has_one_version_of_every_dependency_and_it_is_allowed(python):
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    pins: dict[str, list[str]] = {}
    for pin in locked():
        if pin.marker is None or pin.marker.evaluate(environment):
            pins.setdefault(pin.name, []).extend(specifier.version for specifier in pin.specifier)
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["test"], *extras["dev"]]
    for requirement in map(Requirement, wanted):
        if requirement.name in ("fiat-jax", "torch"):
            continue
        versions = pins.get(requirement.name.lower().replace("_", "-"), [])
        assert len(versions) == 1, f"{requirement} is locked to {versions}; run make lock"
        assert requirement.specifier.contains(versions[0]), f"{requirement} is locked to {versions}; run make lock"


def test_the_lock_holds_plain_versions_and_leaves_torch_to_the_machine():
    for pin in locked():
        assert [specifier.operator for specifier in pin.specifier] == ["=="], str(pin)
        assert (pin.url, pin.extras) == (None, set()), str(pin)
        assert not re.match(r"torch$|triton$|nvidia-|cuda-", pin.name), f"{pin.name} belongs to a build of torch"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    broken = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
    assert broken == []
