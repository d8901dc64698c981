"""What stands in a wrong setting may be a password: a URL of one is never shown, by nobody."""
import json

import pytest
import requests

from stack.clients.client import Session
from stack.clients.state import ROUTE, pass_seconds
from stack.process import DEADLINE, free_port, wait_until
from tests.stack.test_doctor import Doctor

SECRET = "gEheim7"
URLS = [f"postgresql://odoo:{SECRET}@127.0.0.1:5432/postgres", f"odoo:{SECRET}@127.0.0.1",
        f"host=127.0.0.1 password={SECRET}"]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.newest)], ids=["threaded", "prefork"])
@pytest.mark.parametrize("value", URLS, ids=["url", "user-and-host", "dsn"])
@pytest.mark.parametrize("setting", ["db_host", "db_name", "db_user", "db_port", "db_sslmode", "db_sslrootcert",
                                     "db_password_file", "metrics_host"])
def test_a_password_in_another_setting(stack, odoo, setting, value, workers):
    if workers and (setting, value) not in [("db_host", URLS[0]), ("db_name", URLS[0])]:
        pytest.skip("is run on one kind of server")
    port = free_port()
    server = odoo(workers=workers, options={"max_cron_threads": 0, "imdispatcher_metrics_port": port,
                                            f"imdispatcher_{setting}": value})
    with Session(server, "demo").subscribe(["a channel"]) as client:
        client.wait_subscribed()
        server.wait_log("(WARNING|ERROR) .*bus_alt_connection")
        wait_until(lambda: requests.get(server.evented_url + ROUTE, timeout=DEADLINE).json()["state"]
                   != "no listener here", DEADLINE, "no listener")
        pass_seconds(5)
        shown = [server.log_text(), requests.get(server.evented_url + ROUTE, timeout=DEADLINE).text]
        if setting != "metrics_host":
            shown.append(requests.get(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE).text)
        shown += stack.postgres.query("SELECT application_name || query FROM pg_stat_activity"
                                      " WHERE usename = 'odoo' OR application_name ~ 'alt'")
        assert SECRET not in str(shown), [line for line in str(shown).split("\\n") if SECRET in line]
    if not workers:
        doctor = Doctor(server, {f"imdispatcher_{setting}": value})
        for args in ([], ["--json"]):
            status, out, err = doctor.run(*args)
            assert status
            assert SECRET not in out + err, json.dumps([line for line in (out + err).splitlines() if SECRET in line])
