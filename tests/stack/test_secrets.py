"""What stands in a wrong setting may be a password: a URL of one is never shown, by nobody."""
import json

import pytest
import requests

from stack.clients.client import Session
from stack.clients.state import ROUTE, pass_seconds
from stack.process import DEADLINE, free_port, wait_until
from tests.stack.test_doctor import Doctor

SECRET = "gEheim7"
VALUES = {"url": f"postgresql://odoo:{SECRET}@127.0.0.1:5432/postgres", "user-and-host": f"odoo:{SECRET}@127.0.0.1",
          "dsn": f"host=127.0.0.1 password={SECRET}"}
OTHERS = "db_user db_port db_sslmode db_sslrootcert db_password_file metrics_host"


newest = pytest.mark.newest


@pytest.mark.parametrize("settings, value, workers", [
    ("db_host", "url", 0), pytest.param("db_host", "url", 2, marks=newest),
    pytest.param("db_host", "user-and-host", 0, marks=newest), pytest.param("db_host", "dsn", 0, marks=newest),
    ("db_name", "url", 0), pytest.param("db_name", "url", 2, marks=newest),
    pytest.param("db_name", "user-and-host", 0, marks=newest), pytest.param("db_name", "dsn", 0, marks=newest),
    pytest.param(OTHERS, "url", 0, marks=newest), pytest.param(OTHERS, "dsn", 0, marks=newest)],
    ids=lambda value: "others" if value == OTHERS else None)
def test_a_password_in_another_setting(stack, odoo, settings, value, workers):
    port = free_port()
    wrong = {f"imdispatcher_{setting}": VALUES[value] for setting in settings.split()}
    server = odoo(workers=workers, options={"max_cron_threads": 0, "imdispatcher_metrics_port": port, **wrong})
    with Session(server, "demo").subscribe(["a channel"]) as client:
        client.wait_subscribed()
        server.wait_log("(WARNING|ERROR) .*bus_alt_connection")
        wait_until(lambda: requests.get(server.evented_url + ROUTE, timeout=DEADLINE).json()["state"]
                   != "no listener here", DEADLINE, "no listener")
        pass_seconds(5)
        shown = [server.log_text(), requests.get(server.evented_url + ROUTE, timeout=DEADLINE).text]
        if settings != OTHERS:
            shown.append(requests.get(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE).text)
        shown += stack.postgres.query("SELECT application_name || query FROM pg_stat_activity"
                                      " WHERE usename = 'odoo' OR application_name ~ 'alt'")
        assert SECRET not in str(shown), [line for line in str(shown).split("\\n") if SECRET in line]
    if not workers:
        doctor = Doctor(server, wrong)
        for args in ([], ["--json"]):
            status, out, err = doctor.run(*args)
            assert status
            assert SECRET not in out + err, json.dumps([line for line in (out + err).splitlines() if SECRET in line])
