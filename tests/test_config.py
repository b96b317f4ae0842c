"""gin at the edge: files and --gin.NAME=VALUE become frozen dataclasses, and what is wrong is said in our words."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from fiat_jax.config import Config
from fiat_jax.errors import UserError
from fiat_jax.experiments import sections
from fiat_jax.experiments.spec import Mixture, Reasoning, Run


@dataclass(frozen=True)
class Engine:
    power: float = 1.0
    fuel: str | None = None


@dataclass(frozen=True)
class Car:
    engine: Engine
    name: str
    seats: int = 4
    electric: bool = False
    colours: tuple[str, ...] = ("red",)
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.seats < 1:
            raise UserError(f"Car.seats is {self.seats}; a car has at least one")


def car(*bindings: str, files=()) -> Car:
    return Config({"Engine": Engine, "Car": Car}, [str(file) for file in files], bindings).build(Car)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_flag_wins_over_files_and_a_later_file_over_an_earlier_one(tmp_path):
    first = write(tmp_path / "first.gin", "Car.name = 'first'\nCar.seats = 2\nEngine.power = 3")
    second = write(tmp_path / "second.gin", "Car.name = 'second'\nCar.seats = 3")
    built = car("Car.name=flag", files=[first, second])
    assert (built.name, built.seats, built.engine.power) == ("flag", 3, 3.0)


def test_parts_of_a_mixture_have_files_and_macros_of_their_own_and_flags_win(tmp_path):
    part = "NAME = 'NUMBER'\nCar.name = %NAME\nCar.weights = {%NAME: 1}\nCar.seats = 2"
    files = {name: str(write(tmp_path / f"{name}.gin", part.replace("NUMBER", name))) for name in ("one", "two")}
    known = {"Engine": Engine, "Car": Car, "Mixture": Mixture}
    bindings = [f"Mixture.files={files}", "Mixture.rates={'one': 1, 'two': 1}", "two/Car.seats=5", "Engine.power=7"]
    cars = {name: Config(known, (), bindings).build(Car, name) for name in files}
    assert [(name, car.name, dict(car.weights), car.seats, car.engine.power) for name, car in cars.items()] == [
        ("one", "one", {"one": 1.0}, 2, 7.0),
        ("two", "two", {"two": 1.0}, 5, 7.0),
    ]
    assert Config(known, (), [*bindings, "NAME=other"]).build(Car, "two").name == "other"
    write(tmp_path / "two.gin", "three/Car.name = 'x'")
    with pytest.raises(UserError, match="the file of a part has no parts"):
        Config(known, (), bindings)


def test_what_is_there_is_overlaid_by_what_is_set():
    config = Config({"Engine": Engine, "Car": Car}, (), ["Engine.power=3"])
    assert config.overlay(Engine(1.0, "gas")) == Engine(3.0, "gas")
    with pytest.raises(UserError, match=r"Engine\.power is 'much'"):
        Config({"Engine": Engine}, (), ["Engine.power=much"]).overlay(Engine())


def test_settings_of_one_command_do_not_leak_into_the_next():
    assert car("Car.name=a", "Car.seats=7").seats == 7
    assert car("Car.name=a").seats == 4


@pytest.mark.parametrize(
    ("binding", "name", "value"),
    [
        ("Car.name=plain words and/a-path.txt", "name", "plain words and/a-path.txt"),
        ("Car.name='quoted'", "name", "quoted"),
        ("Car.name=a=b", "name", "a=b"),
        ("Car.seats=5", "seats", 5),
        ("Car.electric=True", "electric", True),
        ("Car.colours=blue", "colours", ("blue",)),
        ("Car.colours=('blue', 'red')", "colours", ("blue", "red")),
        ("Car.colours='blue','red'", "colours", ("blue", "red")),
        ("Car.weights={'empty': 900}", "weights", {"empty": 900.0}),
    ],
)
def test_a_flag_gives_the_type_of_its_field(binding, name, value):
    found = getattr(car("Car.name=any", binding), name)
    assert found == value
    assert type(found) is type(value)


def test_a_whole_number_and_an_exponent_are_floats_where_a_float_is_wanted():
    powers = [car("Car.name=a", f"Engine.power={text}").engine.power for text in ("2", "3e2", "-0.5")]
    assert powers == [2.0, 300.0, -0.5]
    assert {type(power) for power in powers} == {float}


def test_a_macro_of_a_file_is_one_override_away(tmp_path):
    file = write(tmp_path / "car.gin", "PLACES = 5\nCar.seats = %PLACES\nCar.name = 'a'")
    assert car(files=[file]).seats == 5
    assert car("PLACES=6", files=[file]).seats == 6
    with pytest.raises(UserError, match=r"a value names a %MACRO that no file or flag sets"):
        car("Car.name=a", "Car.seats=%ROOMS")


def test_a_file_includes_others_wherever_the_command_is_started(tmp_path, monkeypatch, caplog):
    write(tmp_path / "project/configs/tasks/engine.gin", "Engine.fuel = 'wind'")
    file = write(tmp_path / "project/configs/runs/car.gin", "include 'configs/tasks/engine.gin'\nCar.name = 'a'")
    monkeypatch.chdir(write(tmp_path / "elsewhere/file", "").parent)
    assert car(files=[file]).engine.fuel == "wind"
    assert not caplog.records


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (["Cra.seats=2"], "unknown gin name 'Cra'; known are Engine, Car. Did you mean 'Car'?"),
        (["Car.setas=2"], "Car has no parameter 'setas'; it has engine, name, seats, .*Did you mean 'seats'?"),
        (["Car.seats"], "--gin.Car.seats: expected --gin.NAME=VALUE"),
        (["Car.seats=two"], "Car.seats is 'two'; it must be of type int"),
        (["Car.seats=True"], "Car.seats is True; it must be of type int"),
        (["Car.electric=1"], "Car.electric is 1; it must be of type bool"),
        (["Engine.fuel=3"], "Engine.fuel is 3; it must be of type str | None"),
        (["Car.weights={'a': 'b'}"], "Car.weights is 'b'; it must be of type float"),
        (["big/Car.seats=2"], "big/Car: 'big' is no part of Mixture.rates; leave out big/"),
        (["Car.seats=0"], "Car.seats is 0; a car has at least one"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_said_in_one_line_that_names_it(bindings, message):
    with pytest.raises(UserError) as raised:
        car("Car.name=a", *bindings)
    begin, _, end = message.partition(".*")
    assert str(raised.value).startswith(begin)
    assert end in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_setting_without_a_default_must_be_given():
    with pytest.raises(UserError, match=r"^Car.name is not set; give it as --gin.Car.name=VALUE$"):
        car()


def test_an_absent_file_and_a_file_with_a_mistake_are_named(tmp_path):
    with pytest.raises(UserError, match=r"--gin_file=nowhere\.gin: no such file"):
        car(files=["nowhere.gin"])
    broken = write(tmp_path / "broken.gin", "Car.seats = (1,\nCar.name = 'a'")
    with pytest.raises(UserError, match=r"broken\.gin"):
        car(files=[broken])
    misspelt = write(tmp_path / "misspelt.gin", "Car.name = 'a'\nCar.setas = 2")
    with pytest.raises(UserError, match=r"Car has no parameter 'setas'"):
        car(files=[misspelt])


def test_whether_a_section_is_set_is_known():
    bound = Config(sections.SECTIONS, [], ["Reasoning.set=abc"])
    assert bound.binds("Reasoning")
    assert not bound.binds("Data")
    assert bound.build(Reasoning) == Reasoning(set="abc")


def test_settings_written_as_gin_are_read_back_as_they_were(tmp_path):
    bindings = [
        "Task.name=a \"quoted\" 'name'\nof two lines",
        "Task.fields=('text',)",
        "Task.labels=('yes', 'no', 'θ → %x @y')",
        f"Task.splits={ {f'split {n}': 'x' * 40 for n in range(9)} }",
        "Lora.rank_pattern={'down_proj': 8}",
        "Optimizer.learning_rate=2e-05",
        "Data.group_field=premise",
    ]
    run = Config(sections.SECTIONS, [], bindings).build(Run)
    file = write(tmp_path / "config.gin", sections.as_gin(run))
    assert Config(sections.SECTIONS, [str(file)]).build(Run) == run
