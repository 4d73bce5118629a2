"""`python -m server.standalone`."""

import sys

from server.standalone.main import main

sys.exit(main())
