"""5,000 lives with new seeds in each run, which it names. Takes 3 minutes."""
import pytest

from .__main__ import main


@pytest.mark.timeout(3600)
@pytest.mark.long      # a new seed may find what nobody knew: that must not stop another change
def test_new_lives(capsys):
    passed = main(["--seeds", "5000"]) == 0
    told = capsys.readouterr().out
    with capsys.disabled():
        print(told.splitlines()[0])     # which seeds
    assert passed, told
