"""All that names the database `postgres` names that of `db_system`: the functions of 20 read the setting."""
import types

import odoo.service.db
import odoo.service.server
from odoo.tools import config

from odoo.addons.base.models import ir_cron
from odoo.addons.bus.models import bus

if not config.get("db_system"):
    config["db_system"] = "postgres"


def renamed(code):
    """The same code with the other name, in functions in it, too."""
    return code.replace(co_consts=tuple(
        config["db_system"] if constant == "postgres" else renamed(constant) if isinstance(constant, types.CodeType)
        else constant for constant in code.co_consts))


def rename(owner):
    for value in vars(owner).values():
        if isinstance(value, types.FunctionType):
            value.__code__ = renamed(value.__code__)


for owner in (bus.BusBus, ir_cron.IrCron, odoo.service.db, odoo.service.server.ThreadedServer,
              odoo.service.server.WorkerCron):
    rename(owner)
