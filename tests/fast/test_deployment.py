"""The deployment that a user copies: docker-compose.yml, pgbouncer.ini and odoo.conf say the same and keep no secret.

Contract: a compose parser takes the file, as `docker compose config` would; images are pinned, every service tells when
it is well, nobody is trusted without a password, and every address leads to where its service is.
"""
import configparser
import os
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
    for name in ("docker-compose.yml", "odoo.conf", "pgbouncer.ini", "nginx.conf"):
        settings = "\n".join(line for line in (REPO / name).read_text().splitlines()
                             if not line.lstrip().startswith(("#", ";")))
        # what is read from a file is no password
        assert not re.search(r"\btrust\b|password\s*=\s*[^\s$]", settings), name
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


def test_an_old_compose_reads_it(compose):
    """Debian 12 has one that knows no configuration in place, which needs 2.23."""
    assert "configs" not in compose
    assert not [name for name, service in compose["services"].items() if "configs" in service or "build" in service]


def test_postgresql_is_one_to_recommend(services):
    """18 or later, which has no LISTEN that fails, and keeps its data in the folder that the image asks for."""
    major = int(re.search(r"postgres:(\d+)", services["postgres"]["image"])[1])
    assert major >= 18
    assert "postgres-data:/var/lib/postgresql" in services["postgres"]["volumes"]


def entrypoint(service, folder):
    """Run the entrypoint of a service with a shell, the image's paths in this folder: its exit code.

    The program that it runs at the end writes down how it was run.
    """
    for name in ("pgbouncer", "entrypoint.sh"):
        program = folder / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" > {folder}/ran\n'
                           f'echo "$PGPASSWORD $ODOO_ADMIN_PASSWD" > {folder}/environment\n')
        program.chmod(0o755)
    shell, flags, script, *rest = service["entrypoint"]
    script = script.replace("$$", "$").replace("/run/secrets", f"{folder}/secrets")
    script = script.replace("/etc/pgbouncer/userlist.txt", f"{folder}/userlist.txt")
    script = script.replace("/entrypoint.sh", f"{folder}/entrypoint.sh")
    done = subprocess.run([shell, flags, script, *rest, *service["command"]], capture_output=True,
                          env={"PATH": f"{folder}:{os.environ['PATH']}"})
    return done.returncode


SECRETS = {"pgbouncer": ["db_password"], "odoo": ["db_password", "master_password"]}
GOOD = {"db_password": "the secret\n", "master_password": "of the manager\n"}


@pytest.fixture
def secrets(tmp_path):
    folder = tmp_path / "secrets"
    folder.mkdir()
    for name, text in GOOD.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", SECRETS)
def test_it_starts_with_its_passwords(services, secrets, tmp_path, name):
    assert entrypoint(services[name], tmp_path) == 0
    ran = (tmp_path / "ran").read_text()
    # no password in what `ps` shows
    assert "secret" not in ran and "manager" not in ran
    if name == "odoo":
        assert ran.strip() == "entrypoint.sh odoo"
        assert (tmp_path / "environment").read_text().strip() == "the secret of the manager"
    else:
        assert (tmp_path / "userlist.txt").read_text() == '"odoo" "the secret"\n'
        assert (tmp_path / "userlist.txt").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("broken", ["missing", "empty"])
@pytest.mark.parametrize("name, secret", [(name, secret) for name, asked in SECRETS.items() for secret in asked])
def test_it_does_not_start_without_a_password(services, secrets, tmp_path, name, secret, broken):
    assert set(services[name]["secrets"]) == set(SECRETS[name])
    (secrets / secret).unlink()
    if broken == "empty":
        (secrets / secret).touch()
    assert entrypoint(services[name], tmp_path) != 0
    assert not (tmp_path / "ran").exists()


def test_the_pooler_is_well_when_it_lets_odoo_in(services):
    """A pooler that answers and knows no password would be well for pg_isready."""
    check = services["pgbouncer"]["healthcheck"]["test"]
    assert check[0] == "CMD-SHELL" and "psql" in check[1] and "/run/secrets/db_password" in check[1]


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
    assert f"-p {settings['listen_port']} -U {odoo['db_user']} " in services["pgbouncer"]["healthcheck"]["test"][1]
    nginx = re.findall(r"proxy_pass http://(\w+):(\d+)", (REPO / "nginx.conf").read_text())
    assert len(nginx) == 2
    for upstream in nginx:
        assert upstream in {("odoo", odoo.get("http_port", "8069")), ("odoo", odoo.get("gevent_port", "8072"))}
    entrypoint = services["pgbouncer"]["entrypoint"][-1]
    assert settings["auth_file"] in entrypoint and f'"{odoo["db_user"]}"' in entrypoint


def test_what_is_shipped_is_what_this_is_about(odoo, pgbouncer, services):
    assert pgbouncer["pgbouncer"]["pool_mode"] == "transaction"
    assert pgbouncer["pgbouncer"]["server_login_retry"] == "1"
    assert services["odoo"]["image"].startswith("odoo:19.0-")
    # in a container it is asked from outside
    assert odoo["http_interface"] == "0.0.0.0"
    assert odoo["server_wide_modules"] == f"{Series(19).server_wide},bus_alt_connection"
    mounted = [volume.split(":")[1] for volume in services["odoo"]["volumes"]]
    assert f"{odoo['addons_path']}/bus_alt_connection" in mounted
    assert odoo["data_dir"] in mounted
    # the pool serves what Odoo can ask for
    assert int(pgbouncer["pgbouncer"]["max_client_conn"]) >= 100
