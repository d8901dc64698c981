"""What poolers say, and how a connection with TLS is lost, in their own words: each has a remedy that fits."""
import pytest

from bus_alt_connection.errors import cause_of

NOT_KNOWN = cause_of("something that nobody has seen yet")
LOST = cause_of("server closed the connection unexpectedly")

FULL = ["FATAL:  no more connections allowed (max_client_conn)",
        "FATAL:  MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to pool_size"]
LOGIN = ["FATAL:  no such user: odoo", 'FATAL:  no such user: "odoo"', "FATAL:  login rejected",
         "FATAL:  wrong password type", "FATAL:  Tenant or user not found"]
POOLER = ["FATAL:  bouncer config error", 'FATAL:  odyssey: c1f5b7f5d0e4: route for "postgres.odoo" is not found',
          "ERROR:  odyssey: c1f5b7f5d0e4: route 'postgres.odoo' not found"]
TLS_LOST = ["SSL SYSCALL error: Success", "SSL SYSCALL error: Broken pipe", "Broken pipe",
            "could not send data to server: Broken pipe", "SSL error: decryption failed or bad record mac",
            "SSL SYSCALL error: Connection reset by peer", "SSL SYSCALL error: EOF detected"]
TIMEOUTS = ["FATAL:  terminating connection due to idle-session timeout",
            "ERROR:  canceling statement due to statement timeout"]


@pytest.mark.parametrize("text", FULL + LOGIN + POOLER)
def test_it_has_a_remedy(text):
    cause = cause_of(text)
    assert cause.name != NOT_KNOWN.name
    assert cause.remedy and cause.remedy != NOT_KNOWN.remedy


@pytest.mark.parametrize("text", FULL)
def test_a_full_pooler(text):
    remedy = cause_of(text).remedy
    assert "max_client_conn" in remedy or "pool" in remedy


@pytest.mark.parametrize("text", LOGIN)
def test_a_pooler_that_refuses_the_login(text):
    remedy = cause_of(text).remedy
    assert "user" in remedy and "imdispatcher_db_sslmode" not in remedy


@pytest.mark.parametrize("text", POOLER)
def test_a_pooler_that_is_not_configured_for_it(text):
    assert "pooler" in cause_of(text).remedy.lower()


@pytest.mark.parametrize("text", TLS_LOST)
def test_a_lost_connection_is_no_wrong_setting(text):
    cause = cause_of(text)
    assert cause.name not in ("tls", "setting", NOT_KNOWN.name)
    assert "ssl" not in cause.remedy.lower() and "imdispatcher_db_user" not in cause.remedy


@pytest.mark.parametrize("text", TIMEOUTS)
def test_a_timeout_of_the_server_is_no_restart(text):
    cause = cause_of(text)
    assert cause.name not in ("restart", "unreachable", LOST.name, NOT_KNOWN.name)
    assert "timeout" in cause.remedy


@pytest.mark.parametrize("text", ["FATAL:  Passwort-Authentifizierung für Benutzer »direct« fehlgeschlagen",
                                  "FATAL:  目前無法連線"])
def test_an_unknown_text_is_no_wrong_address(text):
    """The server has answered, so host and port are right; what it says is what counts."""
    assert "imdispatcher_db_port" not in cause_of(text).remedy or "imdispatcher_db_password" in cause_of(text).remedy


def test_what_is_quoted_holds_no_secret():
    """Such a text would come from a setting that is not what it should be."""
    for text in ("nobody has seen postgresql://odoo:geheim@host/postgres", "nobody has seen password=geheim"):
        assert "geheim" not in cause_of(text).remedy
