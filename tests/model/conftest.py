# SPDX-License-Identifier: Apache-2.0
"""Properties are judged by what they say, not by how fast a loaded machine finds it."""

from hypothesis import HealthCheck, settings


settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
