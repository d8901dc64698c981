# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The commands that the addon brings to Odoo's command line."""

from . import bus_doctor  # noqa: F401
