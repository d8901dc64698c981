"""Odoo in a container: nothing but environment variables, and the doctor as the image's entrypoint starts it.

The images themselves are not run. What the entrypoint of Odoo's image does to a command is done here, by its own rules:
what neither the configuration file nor, from 19 on, the environment says about the database becomes an argument.

Takes 1 min.
"""
import re
import subprocess
from pathlib import Path

import pytest
import requests

from stack.clients.listeners import wait_listening
from stack.process import DEADLINE
from stack.recipes import changed
from tests.documents import block

# what the image has: the file, and an addons path in it
IMAGE_CONF = "[options]\naddons_path = {addons}\ndata_dir = {data}\n"


def variables(name, **words):
    """The variables of a page's block, as the shell reads them, with other words in the place of these."""
    text = changed(block(name), words)
    names = re.findall(r"^(\w+)=", text, re.M)
    done = subprocess.run(["sh", "-c", f"{text}\nfor name in {' '.join(names)}; do eval echo \"$name=\\$$name\"; done"],
                          env={}, text=True, capture_output=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.fixture
def image(odoo, tmp_path):
    """An Odoo that is not started yet, and the file that its image would have: (server, environment)."""
    server = odoo.stack.odoo(name=f"image-{tmp_path.name}")
    odoo.started.append(server)
    conf = tmp_path / "odoo.conf"
    conf.write_text(IMAGE_CONF.format(addons=server.addons_path(), data=server.data_dir))
    return server, {"ODOO_RC": str(conf)}


def ports(server):
    """The ports of this run, which an image has for itself."""
    return {"ODOO_HTTP_PORT": str(server.http_port), "ODOO_GEVENT_PORT": str(server.evented_port)}


def from_the_page(server, postgres):
    """What the page says, with the addresses of this stack."""
    told = variables("containers-environment", **{
        "PGHOST=pooler.example": f"PGHOST={server.db_host}", "PGPORT=6432": f"PGPORT={server.db_port}",
        "'the password of odoo'": f"'{server.password}'",
        "IMDISPATCHER_DB_HOST=pg.example": f"IMDISPATCHER_DB_HOST={postgres.host}",
        "IMDISPATCHER_DB_PORT=5432": f"IMDISPATCHER_DB_PORT={postgres.port}"})
    return {**told, "ODOO_HTTP_INTERFACE": server.host, **ports(server)}


@pytest.mark.needs("options_from_environment")
def test_nothing_but_environment_variables(image, bus, postgres):
    server, env = image
    env.update(from_the_page(server, postgres))
    env["ODOO_ADMIN_PASSWD"] = "of the manager"     # as docker-compose.yml sets it
    server.workers = int(env["ODOO_WORKERS"])
    server.launch([*server.source.command, "--database=demo"], server.env(env), server.folder)
    client, sender = bus(server.wait_ready())
    wait_listening(postgres, server, "bus")
    wait_listening(postgres, server, "cron")
    sender.send_orm("here")
    assert client.next().payload == "here"
    log = server.log_text()
    assert "unknown option" not in log and "http_interface" not in log
    # the master password of the environment is the one that counts
    assert drop_nothing(server, "of the manager") == {"result": False}
    assert "error" in drop_nothing(server, "admin")
    # and the doctor sees the same settings
    status, out = doctor(server, env)
    assert (status, out.splitlines()[-1]) == (0, "All is well."), out
    assert "from environment variable IMDISPATCHER_DB_HOST" in out


def drop_nothing(server, password):
    """Ask with a master password for a database that does not exist to be dropped."""
    params = {"service": "db", "method": "drop", "args": [password, "nowhere"]}
    answer = requests.post(f"{server.url}/jsonrpc", json={"jsonrpc": "2.0", "params": params}, timeout=DEADLINE).json()
    return {key: value for key, value in answer.items() if key in ("result", "error")}


def entrypoint(command, env, natively):
    """The command that the entrypoint of Odoo's image runs instead of this one, after `odoo`."""
    conf = Path(env["ODOO_RC"]).read_text()
    more = []
    for name, own, variable, default in (("db_host", "HOST", "PGHOST", "db"), ("db_port", "PORT", "PGPORT", "5432"),
                                         ("db_user", "USER", "PGUSER", "odoo"),
                                         ("db_password", "PASSWORD", "PGPASSWORD", "odoo")):
        if not (natively and variable in env) and not re.search(rf"^\s*{name}\s*=", conf, re.M):
            more += [f"--{name}", env.get(own) or (not natively and env.get(variable)) or default]
    return [*command, *more]


def doctor(server, env, *args, natively=True):
    done = subprocess.run([*server.source.command, *entrypoint(["bus_doctor", *args], env, natively)],
                          env=server.env(env), cwd=server.folder, stdin=subprocess.DEVNULL, text=True,
                          capture_output=True, timeout=DEADLINE)
    assert server.password not in done.stdout + done.stderr and "Traceback" not in done.stderr
    return done.returncode, done.stdout


def test_the_doctor_through_the_entrypoint(image, postgres):
    """As every version can be started: the image's own variables, which become arguments, and `--load`."""
    server, env = image
    env.update({"HOST": server.db_host, "PORT": str(server.db_port), "USER": "odoo", "PASSWORD": server.password,
                "IMDISPATCHER_DB_HOST": postgres.host, "IMDISPATCHER_DB_PORT": str(postgres.port)})
    status, out = doctor(server, env, f"--load={server.facts.server_wide},bus_alt_connection", natively=False)
    assert (status, out.splitlines()[-1]) == (0, "All is well."), out
