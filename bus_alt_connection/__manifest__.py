# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
{
    "name": "Bus Alt Connection",
    "summary": "Live messages and scheduled actions behind PgBouncer, and through PostgreSQL failovers",
    "version": "2.0.0",
    "author": "Bus Alt Connection contributors",
    "license": "AGPL-3",
    "category": "Extra Tools",
    "depends": ["bus"],
    "post_load": "post_load",
}
