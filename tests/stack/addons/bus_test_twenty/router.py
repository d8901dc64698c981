"""`odoo.http` without the application, and `odoo.http.router` with it."""
import sys
import types

import odoo.http

router = types.ModuleType("odoo.http.router")
router.Application, router.root = odoo.http.Application, odoo.http.root
del odoo.http.Application
odoo.http.__path__ = []     # a package there
odoo.http.router = sys.modules[router.__name__] = router
