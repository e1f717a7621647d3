"""What the command lines of the examples share: mistakes and parsers of values."""

import argparse

import pytest

from examples import command_line

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize("text, value", [("1/1", (1, 1)), ("2/3", (2, 3))])
def test_shard(text, value):
    assert command_line.shard(text) == value


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/2/3"])
def test_a_shard_that_is_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"Received: {text}"):
        command_line.shard(text)


def test_positive_numbers():
    assert command_line.positive(int)("3") == 3
    assert command_line.positive(float)("1e-3") == 0.001
    for bad in ("0", "-1", "inf", "nan"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"Received: {bad}"):
            command_line.positive(float)(bad)


def test_a_mistake_is_one_line(capsys):
    def refuse():
        with command_line.user_choices():
            raise ValueError("This is\n  wrong. Received: 3.")

    assert command_line.exit_status("a.py", refuse) == 2
    assert capsys.readouterr().err == "a.py: error: This is wrong. Received: 3.\n"
    assert command_line.exit_status("a.py", lambda: None) == 0
    assert command_line.exit_status("a.py", lambda: 1) == 1


def test_a_wrong_option_is_one_line(capsys):
    parser = command_line.OneLineParser(prog="a.py")
    parser.add_argument("--steps", type=command_line.positive(int))
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--steps", "0"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("a.py: error: argument --steps: must be positive.")
    assert error.count("\n") == 1


def test_help_names_the_defaults_that_there_are():
    parser = argparse.ArgumentParser(formatter_class=command_line.DefaultsHelp)
    parser.add_argument("--steps", default=40, help="of training")
    parser.add_argument("--seed", default=0, help="of the order")
    parser.add_argument("--html", help="a page")
    parser.add_argument("--resume", action="store_true", help="go on")
    text = parser.format_help()
    assert "of training (default: 40)" in text and "order (default: 0)" in text
    assert text.count("default") == 2
