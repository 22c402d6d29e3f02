import time

from lavit_jax.training.watchdog import FILE, Watchdog


def waited_for(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_a_hang_is_told_once_with_the_stacks_of_all_threads(tmp_path, capfd):
    def where_it_hangs():
        return waited_for(lambda: (tmp_path / FILE).exists() and "(most" in dumped())

    def dumped():
        return (tmp_path / FILE).read_text()

    with Watchdog(tmp_path, 0.04, process=3):
        assert where_it_hangs()
        time.sleep(0.2)
    assert "process 3: no step ended for" in dumped()
    assert "in where_it_hangs" in dumped()
    assert dumped().count("no step ended") == 1
    told = capfd.readouterr().err
    assert "warning: " in told
    assert "in where_it_hangs" in told


def test_every_hang_is_told(tmp_path):
    def count():
        return (tmp_path / FILE).read_text().count("no step ended") if exists() else 0

    def exists():
        return (tmp_path / FILE).exists()

    with Watchdog(tmp_path, 0.04) as watchdog:
        assert waited_for(lambda: count() == 1)
        watchdog.beat()
        assert waited_for(lambda: count() == 2)


def test_steps_and_zero_seconds_keep_it_quiet(tmp_path):
    with Watchdog(tmp_path, 30.0) as watchdog:
        watchdog.beat()
    with Watchdog(tmp_path, 0.0):
        time.sleep(0.05)
    assert not (tmp_path / FILE).exists()


def test_a_work_directory_that_cannot_be_written_is_told_and_the_run_goes_on(tmp_path, capfd):
    with Watchdog(tmp_path / "gone", 0.04):
        assert waited_for(lambda: True)
        time.sleep(0.3)
    assert "No such file" in capfd.readouterr().err
