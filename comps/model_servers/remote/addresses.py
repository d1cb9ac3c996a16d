"""Where a model server is and how it is reached: URLs, the proxies of the environment, TLS."""

from __future__ import annotations

import ssl
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from comps.core.errors import SettingsError
from comps.model_servers.target import Access


def checked_url(url: str, key: str) -> SplitResult:
    """A URL in its parts.

    Args:
        url: The URL.
        key: The setting that has it.

    Raises:
        SettingsError: It is none that could be asked.
    """
    try:
        parts = urlsplit(url)
        if not url.startswith(("http://", "https://")):
            raise ValueError("a URL is needed, which begins with http:// or https://")
        if any(character.isspace() for character in url):
            raise ValueError("no space may be in a URL")
        if not parts.hostname or parts.port == 0:
            raise ValueError("no host, or no port, in this URL")
    except ValueError as error:  # Of urlsplit and port as well.
        raise SettingsError(f"{key} = {url}: {error}") from None
    return parts


def proxy_for(url: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for this host: http_proxy, https_proxy, all_proxy, but for no_proxy.

    Raises:
        SettingsError: It names one that is no HTTP proxy, or is no URL.
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
    """What certificates are checked against and which one is shown; made once, since it reads files.

    Raises:
        SettingsError: A file cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=access.ca_file or None)
        if access.client_certificate:
            # A key with a passphrase would ask for it on the terminal.
            context.load_cert_chain(access.client_certificate, access.client_key or None, password=_no_password)
    except OSError as error:  # SSLError is one: what it says does not name the file.
        keys = [key for key in ("ca_file", "client_certificate", "client_key") if getattr(access, key)]
        files = ", ".join(f"{key} = {getattr(access, key)}" for key in keys)
        raise SettingsError(f"{files}: no usable certificate: {error.strerror or error}") from None
    if not access.verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _no_password() -> str:
    raise OSError("the key is protected by a passphrase")
