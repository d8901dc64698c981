"""PostgreSQL's messages in another language than English.

Contract: within `speaking(postgres, …)` a server, which is restarted for it and after it, writes its messages in that
locale, those at log-in included. The locale is made in the server's own folder: nothing of the machine is changed.
"""
import contextlib
import shutil
import subprocess

from ..base import StackError, Unavailable

GERMAN, GERMAN_LATIN1 = ("de_DE", "UTF-8"), ("de_DE", "ISO-8859-1")
ROLE = {"de_DE": "Rolle"}        # a word of what it says of a role that does not exist, in this language


def made(postgres, language, charset):
    """The folder of the locale, and its name there."""
    if not shutil.which("localedef"):
        raise Unavailable("messages in another language need the program localedef (Debian: libc-bin)")
    folder = postgres.folder / "locales"
    folder.mkdir(exist_ok=True)
    name = f"{language}.{charset.replace('-', '').lower()}"
    if not (folder / name).exists():
        done = subprocess.run(["localedef", "-i", language, "-f", charset, str(folder / name)], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if not (folder / name).exists():
            raise Unavailable(f"localedef cannot make {name} (Debian: locales): {done.stdout.strip()[-200:]}")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder, name


@contextlib.contextmanager
def speaking(postgres, language, charset):
    """Raises Unavailable where this machine lacks the locale, or the server's messages in it."""
    folder, name = made(postgres, language, charset)
    settings = dict(postgres.settings)
    # what it says before it knows the database is written in the charset of its own environment
    postgres.environ = {"LOCPATH": str(folder), "LC_ALL": name}
    postgres.settings = {**settings, "lc_messages": name}
    try:
        postgres.restart()
        heard = refusal(postgres)
        if ROLE[language].encode() not in heard:
            raise Unavailable(f"this PostgreSQL has no messages in {language}: it says {heard!r}")
        yield
    finally:
        postgres.environ, postgres.settings = {}, settings
        postgres.restart()


def refusal(postgres):
    """The bytes of the log in which it refuses a role that does not exist."""
    import psycopg2  # as in postgres.connect
    since = postgres.log_size()
    postgres.passwords["nobody"] = "none"
    try:
        postgres.connect(user="nobody").close()
    except (psycopg2.OperationalError, UnicodeDecodeError):
        return postgres.log_bytes(since)
    finally:
        del postgres.passwords["nobody"]
    raise StackError("a role that does not exist may log in")
