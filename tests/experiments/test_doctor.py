"""`fiat doctor`: what it finds, and that all processes name whose machine is broken."""

import json

import pytest
from rich.console import Console

from fiat_jax.cli import main
from fiat_jax.errors import UserError
from fiat_jax.experiments import doctor

HOSTS = ("alpha", "alpha", "beta")


@pytest.fixture
def told(monkeypatch):
    """Let other processes say `others` on a topic, beside what this one says."""

    def told(**others: object) -> None:
        def by_all(topic: str, word: str, seconds: float = 0) -> list[str]:
            return [word, *(json.dumps(other) for other in others[topic])]

        monkeypatch.setattr(doctor, "told_by_all", by_all)

    return told


def test_a_sound_machine_is_told_line_by_line(tmp_path, capsys):
    assert main(["doctor", f"--storage={tmp_path}", "--storage=memory://fiat/doctor", "--devices=8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [
        "processes",
        "versions",
        "devices",
        "collectives",
        "storage",
        "storage",
    ]
    assert "right over 8 devices" in lines[3]
    assert lines[-1].strip() == "nothing is wrong"
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"


def test_storage_that_cannot_be_written_is_the_users_mistake(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["doctor", f"--storage={tmp_path / 'file'}"]) == 2
    error = capsys.readouterr().err
    assert "storage 1, writing: process 0 on " in error
    assert "correct the path or its rights" in error


def test_devices_that_are_missing_are_counted(capsys):
    assert main(["doctor", "--devices=16"]) == 2
    assert "there are 8 (8 in each of 1 processes), not 16" in capsys.readouterr().err


def test_whose_check_fails_is_named_with_what_is_wrong_once(told):
    told(devices=[{"wrong": "no driver"}, {"wrong": "no driver"}])
    with pytest.raises(UserError, match=r"devices: process 1 on alpha, process 2 on beta: no driver$"):
        doctor._all("devices", lambda: "sound", HOSTS)


def test_an_error_of_any_kind_is_found_and_not_raised_alone(told):
    told(devices=[{"found": 1}, {"found": 1}])
    with pytest.raises(UserError, match="devices: process 0 on alpha: RuntimeError: cuInit failed"):
        doctor._all("devices", _fail, HOSTS)


def _fail():
    raise RuntimeError("cuInit failed")


def test_versions_that_differ_are_named_with_both_hosts():
    found = [{"jax": "1", "numpy": "2"}, {"jax": "1", "numpy": "2"}, {"jax": "3", "numpy": "2"}]
    with pytest.raises(
        UserError, match="process 0 on alpha and process 2 on beta differ in jax 1 and 3; make them the same"
    ):
        doctor._require_same("versions", found, HOSTS)


def devices(**other: object) -> dict:
    return {"kind": "gpu H200", "count": 1, "memory": 2**37, "machine": 2, "all": 3} | other


def test_gpus_that_no_process_uses_are_named():
    assert "GPUs that no process uses: beta (1)" in doctor._told([devices()] * 3, HOSTS, 3)
    assert "no process uses" not in doctor._told([devices()] * 2 + [devices(machine=1)], HOSTS, None)


@pytest.mark.parametrize("other", [{"kind": "gpu A100"}, {"count": 2}], ids=str)
def test_processes_with_other_devices_are_named(other):
    with pytest.raises(UserError, match="process 2 on beta differ in"):
        doctor._told([devices(), devices(), devices(**other)], HOSTS, None)


def test_a_sum_that_is_wrong_is_noticed(monkeypatch):
    monkeypatch.setattr(doctor.jnp, "sum", lambda x, axis: 2 * x[0])
    with pytest.raises(UserError, match="all-reduce gives wrong values on "):
        doctor._collectives()


def test_many_hosts_are_told_in_few_words():
    assert doctor._few([f"host{n}" for n in range(64)]).endswith("host7 and 56 more")


def test_an_accelerator_that_jax_does_not_see_is_an_error(monkeypatch):
    monkeypatch.setattr(doctor, "_accelerator", lambda: "gpu")
    assert doctor._devices()["count"] == 8, "JAX_PLATFORMS says that it is meant"
    with pytest.raises(UserError, match=r"has a GPU and JAX sees none; pip install .* '.\[gpu\]'"):
        doctor._refuse_idle(doctor._accelerator())


def test_a_machine_without_accelerators_is_sound():
    doctor._refuse_idle(doctor._accelerator())


def test_what_another_host_does_not_show_is_noticed_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "SHARED_AFTER", 0.3)
    doctor._write(f"{tmp_path}/sign-0", "text")
    with pytest.raises(UserError, match="does not show what process 1 on alpha, process 2 on beta writes"):
        doctor._read_all(str(tmp_path), f"{tmp_path}/sign-", "text", HOSTS)


def test_only_process_0_speaks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "place", lambda: (1, 2))
    doctor.examine([], None, Console())
    assert capsys.readouterr().out == ""
