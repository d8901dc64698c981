"""Every setting with a right value, and wrong values with what would be right: for the tests with an Odoo and without.

FILE stands for a file that exists. Text is what stands in odoo.conf or in the environment.
"""
SECRET = "hunter2hunter2"
FILE = "FILE"

# setting, a right value as text, what it becomes
CONNECTION = [
    ("db_host", "direct.example", ["direct.example"]),
    ("db_port", "5433", [5433]),
    ("db_user", "listener", "listener"),
    ("db_password", SECRET, SECRET),
    ("db_password_file", FILE, FILE),
    ("db_name", "somewhere", "somewhere"),
    ("db_sslmode", "verify-full", "verify-full"),
    ("db_sslrootcert", FILE, FILE),
]
OTHERS = [
    ("heartbeat_seconds", "7.5", 7.5),
    ("connect_timeout_seconds", "30", 30.0),
    ("poll_seconds", "45", 45.0),
    ("keep_notify", "false", False),
    ("queue_job", "false", False),
    ("metrics_port", "9187", 9187),
    ("metrics_host", "0.0.0.0", "0.0.0.0"),
]
RIGHT = CONNECTION + OTHERS
NAMES = [row[0] for row in RIGHT]

# setting, a wrong value as text, words of what would be right
WRONG = [
    ("db_port", "abc", "1 to 65535"),
    ("db_port", "0", "1 to 65535"),
    ("db_port", "-1", "1 to 65535"),
    ("db_port", "70000", "1 to 65535"),
    ("db_port", "5432.0", "1 to 65535"),
    ("db_port", "5432,", "1 to 65535"),
    ("db_port", "\u00b2", "1 to 65535"),     # a digit, but no number: str.isdigit says yes, int says no
    ("db_host", "direct.example:5432", "without a port"),
    ("db_host", "direct.example,", "a host name"),
    ("db_host", "two words", "a host name"),
    ("db_host", "auto", "auto is no longer supported"),
    ("db_host", "a,auto", "auto is no longer supported"),
    ("db_host", "x=y", "a host name"),
    ("db_sslmode", "maybe", "verify-full"),
    ("db_sslmode", "verify_full", "verify-full"),
    ("db_sslmode", "Require", "require"),
    ("heartbeat_seconds", "often", "number of seconds"),
    ("heartbeat_seconds", "0", "0.05 to 60"),
    ("heartbeat_seconds", "61", "0.05 to 60"),
    ("connect_timeout_seconds", "inf", "0.05 to 60"),
    ("connect_timeout_seconds", "5s", "number of seconds"),
    ("poll_seconds", "1,5", "number of seconds"),
    ("poll_seconds", "nan", "0.05 to 45"),
    ("poll_seconds", "46", "0.05 to 45"),
    ("keep_notify", "never", "true, false"),
    ("keep_notify", "2", "true, false"),
    ("queue_job", "never", "true, false"),
    ("metrics_port", "70000", "1 to 65535"),
    ("metrics_port", "9187,9188", "1 to 65535"),
    ("metrics_host", "here:9187", "without a port"),
]
# Settings without which nothing must be connected to when they are wrong: nothing weaker takes their place.
FATAL = ("db_user", "db_password", "db_password_file", "db_name", "db_sslmode", "db_sslrootcert")
