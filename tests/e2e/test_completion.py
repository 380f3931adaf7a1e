"""Shell completion: the script that is installed, and that the shell takes it."""

import shutil
import subprocess

import pytest
from commandline import darklens

from darklens.cli import app

WORDS = ("simulate", "predict", "doctor", "--pixel-scale")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_with_all_commands_is_made_for_each_shell(shell, tmp_path):
    path = app.install_completion(shell=shell, output=tmp_path / "script", add_to_startup=False)
    text = path.read_text(encoding="utf-8")
    for word in WORDS:
        assert word.lstrip("-") in text
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(path)], check=True, timeout=60)


def test_bash_completes_a_command(tmp_path):
    path = app.install_completion(shell="bash", output=tmp_path / "script", add_to_startup=False)
    script = f"""
    source {path}
    COMP_WORDS=(darklens sim); COMP_CWORD=1; COMP_LINE="darklens sim"; COMP_POINT=${{#COMP_LINE}}
    $(complete -p darklens | sed 's/.*-F \\([^ ]*\\) .*/\\1/') darklens sim darklens
    echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "simulate" in done.stdout


def test_the_option_installs_it_into_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert darklens("--install-completion", "--shell", "bash") == 0
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("simulate" in path.read_text(encoding="utf-8") for path in written)
    assert capsys.readouterr().out
