"""``python -m domainbed_carft`` is the ``carft`` command."""

import sys

from domainbed_carft.cli import main

sys.exit(main())
