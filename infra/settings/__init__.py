"""What a stack's config may say, one module for each kind of stack; read with `parse_settings`."""

from infra.settings.endpoint import EndpointSettings
from infra.settings.loading import SettingsError, parse_settings, parse_value
from infra.settings.platform import PlatformSettings
from infra.settings.version import VersionSettings

__all__ = ["EndpointSettings", "PlatformSettings", "SettingsError", "VersionSettings", "parse_settings", "parse_value"]
