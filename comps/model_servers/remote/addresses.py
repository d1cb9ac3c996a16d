"""URLs, proxies from the environment, and TLS contexts."""

from __future__ import annotations

import ssl
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from comps.core.errors import SettingsError
from comps.core.redaction import without_keys
from comps.model_servers.target import Access


def shown(url: SplitResult) -> str:
    """Returns a URL as messages show it: without credentials, query and fragment."""
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def checked_url(url: str, key: str) -> SplitResult:
    """Parses and checks an HTTP URL.

    Args:
        url: The URL.
        key: The setting that contains it, for the message.

    Raises:
        SettingsError: The URL is not HTTP, or its host or port is invalid.
    """
    try:
        parts = urlsplit(url)
        if not url.startswith(("http://", "https://")):
            raise ValueError("a URL is needed, which begins with http:// or https://")
        if any(character.isspace() for character in url):
            raise ValueError("no space may be in a URL")
        if not parts.hostname or parts.port == 0:
            raise ValueError("no host, or no port, in this URL")
        parts.hostname.encode("idna")
    except ValueError as error:  # urlsplit and port raise it as well.
        raise SettingsError(f"{key} = {without_keys(url)}: {error}") from None
    return parts


def proxy_for(url: SplitResult) -> SplitResult | None:
    """Returns the proxy for a URL, from http_proxy, https_proxy, all_proxy and no_proxy; None for a direct connection.

    Raises:
        SettingsError: The proxy is no HTTP proxy, or its URL is invalid.
    """
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.netloc):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise SettingsError(f"{url.scheme}_proxy: only HTTP proxies are known here, no {proxy.partition(':')[0]}")
    try:
        parts = urlsplit(proxy)
        if parts.hostname and parts.port != 0:
            return parts
    except ValueError:
        pass
    raise SettingsError(f"{url.scheme}_proxy: no host, or no port, in this URL")


def tls_context(access: Access) -> ssl.SSLContext:
    """Returns the TLS context: trusted authorities, client certificate and verification.

    Raises:
        SettingsError: A file cannot be read, or has no usable certificate.
    """
    try:
        context = ssl.create_default_context(cafile=access.ca_file or None)
        if access.client_certificate:
            # OpenSSL would ask for a passphrase on the terminal.
            context.load_cert_chain(access.client_certificate, access.client_key or None, password=_no_password)
    except OSError as error:  # SSLError is a subclass; its message does not name the file.
        keys = [key for key in ("ca_file", "client_certificate", "client_key") if getattr(access, key)]
        files = ", ".join(f"{key} = {getattr(access, key)}" for key in keys)
        raise SettingsError(f"{files}: no usable certificate: {error.strerror or error}") from None
    if not access.verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _no_password() -> str:
    raise OSError("the key is protected by a passphrase")
