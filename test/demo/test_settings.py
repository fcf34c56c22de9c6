import pytest

from stream_vlm_ros.demo.settings import CLIENT_PARAMETERS, SOURCE_PARAMETERS, check
from stream_vlm_ros.errors import InvalidParameterError


def test_every_default_passes_its_own_check():
    for table in (SOURCE_PARAMETERS, CLIENT_PARAMETERS):
        for name, setting in table.items():
            check(name, setting, setting.default)
            assert setting.description.endswith(".")


def test_what_the_command_line_makes_of_a_value_is_taken():
    assert check("rate", SOURCE_PARAMETERS["rate"], 5) == 5.0
    assert check("source", SOURCE_PARAMETERS["source"], 0) == "0"  # -p source:=0 is a camera
    assert check("questions", CLIENT_PARAMETERS["questions"], ["", "a?"]) == ["a?"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rate", "fast", "float"),
        ("rate", -1.0, "at least"),
        ("rate", float("nan"), "at least"),
        ("loop", 1, "bool"),
        ("reliability", "perhaps", "reliable or best_effort"),
        ("depth", 0, "at least"),
    ],
)
def test_a_bad_value_is_refused_with_its_name(name, value, words):
    with pytest.raises(InvalidParameterError, match=f"{name} must be .*{words}"):
        check(name, SOURCE_PARAMETERS[name], value)
