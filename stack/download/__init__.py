"""What a command needs, into the cache: Debian's packages, Odoo, Python packages, programs of other releases.

Contract: nothing of this machine is changed but the cache folder, and what is in the cache is complete. Runs before
there is a virtual environment, so it imports the standard library, stack.base and stack.process alone. Everything may
import it.
"""
