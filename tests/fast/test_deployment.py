"""The deployment that a user copies: docker-compose.yml, pgbouncer.ini and odoo.conf say the same and keep no secret.

Contract: a compose parser takes the file, as `docker compose config` would; images are pinned, every service tells when
it is well, nobody is trusted without a password, and every address leads to where its service is.
"""
import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from stack.series import Series

REPO = Path(__file__).parent.parent.parent
COMPOSE = REPO / "docker-compose.yml"


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load(COMPOSE.read_text())


@pytest.fixture(scope="module")
def services(compose):
    return compose["services"]


def read_ini(name):
    parser = configparser.RawConfigParser(comment_prefixes=(";", "#"), strict=True)
    parser.read(REPO / name)
    return parser


@pytest.fixture(scope="module")
def odoo():
    return dict(read_ini("odoo.conf")["options"])


@pytest.fixture(scope="module")
def pgbouncer():
    return read_ini("pgbouncer.ini")


def parse(text):
    from compose_spec import PyOptions
    parsed = PyOptions(apply_merge=True).from_yaml(text)
    parsed.validate()
    return parsed


def test_a_compose_parser_takes_it(services):
    assert sorted(parse(COMPOSE.read_text()).service_names()) == sorted(services)


@pytest.mark.parametrize("right, wrong", [
    ("    healthcheck:", "    healthchek:"),
    ("condition: service_healthy", "condition: service_well"),
    ("interval: 2s", "interval: 2 parsecs"),
    ("restart: unless-stopped", "restart: sometimes"),
    ("  db_password:\n    file", "  another:\n    file"),
    ("configs:\n  nginx:", "configs:\n  other:"),
    ("    content: |", "    contents: |"),
])
def test_the_parser_finds_mistakes(right, wrong):
    text = COMPOSE.read_text()
    assert right in text
    with pytest.raises(ValueError):
        parse(text.replace(right, wrong))


def docker_compose():
    """The command of Docker Compose 2, which is a plugin or a program, or None."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
            if not done.returncode and done.stdout.startswith("2"):
                return command
    return None


def test_docker_takes_it():
    """`docker compose config` needs no engine."""
    command = docker_compose()
    if not command:
        pytest.skip("no Docker Compose on this machine; the parser above has read the file")
    done = subprocess.run([*command, "-f", COMPOSE, "config", "--quiet"], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_images_are_pinned(services):
    for name, service in services.items():
        tag = service["image"].partition(":")[2]
        assert re.search(r"\d", tag) and "latest" not in tag, name
        assert "build" not in service


def test_every_service_tells_when_it_is_well(services):
    for name, service in services.items():
        assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"]), name
        for other, needed in service.get("depends_on", {}).items():
            assert other in services and needed["condition"] == "service_healthy", (name, other)
    assert set(services["odoo"]["depends_on"]) == {"pgbouncer"}
    assert set(services["pgbouncer"]["depends_on"]) == {"postgres"}


def test_a_password_everywhere_and_in_no_file(compose, services, odoo, pgbouncer):
    environment = services["postgres"]["environment"]
    assert environment["POSTGRES_HOST_AUTH_METHOD"] == "scram-sha-256"
    assert environment["POSTGRES_INITDB_ARGS"] == "--auth=scram-sha-256"
    assert pgbouncer["pgbouncer"]["auth_type"] == "scram-sha-256"
    for service in services.values():
        for name, value in (service.get("environment") or {}).items():
            if "PASS" in name or "SECRET" in name:
                assert name.endswith("_FILE") and value.startswith("/run/secrets/"), name
    for secret in compose["secrets"].values():
        assert set(secret) == {"file"}
        # made by the user, never by us
        tracked = subprocess.run(["git", "ls-files", secret["file"]], cwd=REPO, capture_output=True)
        assert not tracked.stdout
        assert "/secrets/" in (REPO / ".gitignore").read_text().split()
    assert not [name for name in odoo if "passw" in name]
    for name in ("docker-compose.yml", "odoo.conf", "pgbouncer.ini"):
        settings = "\n".join(line for line in (REPO / name).read_text().splitlines()
                             if not line.lstrip().startswith(("#", ";")))
        assert not re.search(r"\btrust\b|password\s*=\s*\S", settings), name
    assert not [line for line in pgbouncer["databases"].values() if "password" in line]


def test_what_is_mounted_is_there(compose, services):
    for service in services.values():
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            if source.startswith("."):
                assert (REPO / source).exists(), source
                assert mode == ["ro"]
            else:
                assert source in compose["volumes"]
        for secret in service.get("secrets", []):
            assert secret in compose["secrets"]
        for config in service.get("configs", []):
            assert config["source"] in compose["configs"]


def test_only_the_front_door_is_open(services):
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert list(published) == ["nginx"]
    for port in published["nginx"]:
        assert port.startswith("127.0.0.1:")


def test_addresses_lead_to_their_services(services, odoo, pgbouncer, compose):
    settings = pgbouncer["pgbouncer"]
    assert (odoo["db_host"], odoo["db_port"]) == ("pgbouncer", settings["listen_port"])
    assert (odoo["imdispatcher_db_host"], odoo["imdispatcher_db_port"]) == ("postgres", "5432")
    assert {odoo["db_host"], odoo["imdispatcher_db_host"]} <= set(services)
    address = dict(part.split("=") for part in pgbouncer["databases"]["*"].split())
    assert address == {"host": odoo["imdispatcher_db_host"], "port": odoo["imdispatcher_db_port"]}
    assert odoo["db_user"] == services["postgres"]["environment"]["POSTGRES_USER"]
    assert settings["listen_port"] in services["pgbouncer"]["healthcheck"]["test"]
    for upstream in re.findall(r"proxy_pass http://(\w+):(\d+)", compose["configs"]["nginx"]["content"]):
        assert upstream in {("odoo", odoo.get("http_port", "8069")), ("odoo", odoo.get("gevent_port", "8072"))}
    entrypoint = services["pgbouncer"]["entrypoint"][-1]
    assert settings["auth_file"] in entrypoint and f'"{odoo["db_user"]}"' in entrypoint


def test_what_is_shipped_is_what_this_is_about(odoo, pgbouncer, services):
    assert pgbouncer["pgbouncer"]["pool_mode"] == "transaction"
    assert pgbouncer["pgbouncer"]["server_login_retry"] == "1"
    assert services["odoo"]["image"] == "odoo:19.0"
    assert odoo["server_wide_modules"] == f"{Series(19).server_wide},bus_alt_connection"
    mounted = [volume.split(":")[1] for volume in services["odoo"]["volumes"]]
    assert f"{odoo['addons_path']}/bus_alt_connection" in mounted
    assert odoo["data_dir"] in mounted
    # the pool serves what Odoo can ask for
    assert int(pgbouncer["pgbouncer"]["max_client_conn"]) >= 100
