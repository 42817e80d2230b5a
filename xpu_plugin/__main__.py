# SPDX-License-Identifier: Apache-2.0
"""`python -m xpu_plugin` is `xpu-device-plugin`."""

import sys

from xpu_plugin.cli import main


sys.exit(main())
