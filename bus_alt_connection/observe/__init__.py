# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""What administrators and their monitoring see: the health route; metrics and the cluster's listeners on demand."""
