"""From the name of a run's folder to the file system that holds it: a disk, `s3://` or `gs://`.

Every process makes it from the name alone, so the name holds no secret: each node brings its own
credentials (environment, credentials file, or the role of the machine).
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pyarrow import fs

from orchestrator.credentials import refuse_in_uri
from supernet.errors import InvalidInput

CONNECT_S = 3.0
SILENT_S = 10.0
"""How long an object store may send nothing before a request counts as failed."""
ATTEMPTS = 3
"""Of a request in all; an endpoint that cannot be reached fails within seconds, not minutes."""
_OPTIONS = {
    "s3": ("region", "scheme", "endpoint_override", "tls_ca_file_path"),
    "gs": ("scheme", "endpoint_override"),
    "file": (),
}
_USERS = {"s3": ("",), "gs": ("", "anonymous")}


@dataclass(frozen=True)
class Place:
    """A folder on a file system of pyarrow's."""

    files: Any
    root: str
    """The folder's path there, without a slash at its end."""
    uri: str
    """What every process makes the same place from: a path, or a URI with its options."""


def open_place(name: str) -> Place:
    """The folder of that name: a path, or a URI such as
    `s3://bucket/run?endpoint_override=host:9000&scheme=http`, with %3F for a ? in its name.

    Raises:
        InvalidInput: if the URI has another scheme, no bucket, no folder, an unknown option, a
            fragment or a password, or an object store's bucket is not to be found.
    """
    if "://" not in name:
        path = os.path.abspath(name)
        return Place(fs.LocalFileSystem(), path, path)
    refuse_in_uri(name)
    parts = urlsplit(name)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    user, _, bucket = parts.netloc.rpartition("@")
    shown = f"{parts.scheme}://{bucket}{parts.path}"
    _check(shown, parts.scheme, options)
    if "#" in name:
        raise InvalidInput(
            f"a run's URI has no fragment, but a # follows {shown}: write %23 for a # in a "
            f"folder's name, or leave it out"
        )
    if parts.scheme == "file":
        path = os.path.abspath(unquote(parts.path))
        return Place(fs.LocalFileSystem(), path, path)
    folder = unquote(parts.path).strip("/")
    if not bucket or not folder or user not in _USERS[parts.scheme]:
        raise InvalidInput(
            f"a run's folder on an object store is {parts.scheme}://BUCKET/FOLDER, but got "
            f"{shown!r}{' with a user' if user else ''}: name both, and nothing else"
        )
    files = _s3(bucket, options) if parts.scheme == "s3" else _gcs(options, anonymous=bool(user))
    query = f"?{parts.query}" if parts.query else ""
    uri = f"{parts.scheme}://{parts.netloc}/{quote(folder)}{query}"
    return Place(files, f"{bucket}/{folder}", uri)


def _check(shown: str, scheme: str, options: dict[str, str]) -> None:
    if scheme not in _OPTIONS:
        raise InvalidInput(
            f"a run's folder is a path or a URI of {', '.join(f'{s}://' for s in _OPTIONS)}, but "
            f"got {shown!r}: use one of them, or mount that storage on every node"
        )
    unknown = sorted(set(options) - set(_OPTIONS[scheme]))
    if unknown:
        raise InvalidInput(
            f"a {scheme}:// URI takes the options {', '.join(_OPTIONS[scheme]) or 'none'}, but got "
            f"{', '.join(unknown)}: leave it out, or mend its name"
        )


def _s3(bucket: str, options: dict[str, str]) -> Any:
    endpoint = options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL", "")
    scheme, _, host = endpoint.rpartition("://")
    region = (
        options.get("region")
        or os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or ("us-east-1" if endpoint else _region_of(bucket))
    )
    return fs.S3FileSystem(
        endpoint_override=host or None,
        scheme=options.get("scheme") or scheme or "https",
        region=region,
        tls_ca_file_path=options.get("tls_ca_file_path") or None,
        connect_timeout=CONNECT_S,
        request_timeout=SILENT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # small files go in one request
    )


def _region_of(bucket: str) -> str:
    try:
        return str(fs.resolve_s3_region(bucket))
    except OSError as error:
        raise InvalidInput(
            f"the bucket of a run's folder must be there and in reach, but {bucket!r} is not "
            f"({error}): make it, mend its name, or set AWS_ENDPOINT_URL for a storage of your own"
        ) from None


def _gcs(options: dict[str, str], *, anonymous: bool) -> Any:
    return fs.GcsFileSystem(
        scheme=options.get("scheme") or "https",
        endpoint_override=options.get("endpoint_override") or None,
        anonymous=anonymous,
        retry_time_limit=timedelta(seconds=ATTEMPTS * SILENT_S),
    )
