"""What went wrong in an object store, in words: the library's errors are long, and its kinds do not tell what to do."""

import re

# where the library asks for credentials when the environment has none
LOOKED_FOR_CREDENTIALS = ("latest/api/token", "security-credentials", "computeMetadata", "metadata/identity")
STATUS = re.compile(r"status code: (\d{3})")
CODE = re.compile(r"<Code>([\w.]{1,100})</Code>")
SYSTEM = re.compile(r'message: "([^"]{1,200})"')
NO_OBJECT = (None, "NoSuchKey", "BlobNotFound")  # of a 404 that is about one object
RETRIED = (408, 429)  # of the answers that blame the request
ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


def refused(error: Exception, scheme: str) -> str | None:
    """Why the store refuses, and what to do; None when another try may go well."""
    text = str(error)
    status, code = _status(text), _code(text)
    if any(place in text for place in LOOKED_FOR_CREDENTIALS):
        return f"there are no credentials: set {ENVIRONMENT[scheme]}, or give the pod a service account that has them"
    if code in ("NoSuchBucket", "ContainerNotFound"):
        return "there is no such bucket: create it, or name another in spec.checkpoint.to"
    if status in (401, 403):
        return (
            f"is not allowed ({_said(status, code)}): let the environment's credentials ({ENVIRONMENT[scheme]}, or the "
            "service account) list, read, write and delete objects there"
        )
    if "InvalidCertificate" in text:
        return "its certificate is not trusted: name a file with its CA's certificate in SSL_CERT_FILE"
    missing = isinstance(error, FileNotFoundError) and code in NO_OBJECT
    if status is not None and 300 <= status < 500 and status not in RETRIED and not missing:
        return (
            f"is refused ({_said(status, code)}): look at the bucket's name, its region (AWS_REGION) and the endpoint"
        )
    return None


def failed(error: Exception) -> str:
    """Why there was no answer to go on with."""
    text = str(error)
    status, code, system = _status(text), _code(text), SYSTEM.search(text)
    if status is not None:
        return f"answers {_said(status, code)}"
    if "TimedOut" in text or "kind: Timeout" in text:
        return "does not answer in time"
    return f"cannot be reached ({system[1]})" if system else f"fails: {text.splitlines()[0][:300]}"


def _said(status: int, code: str | None) -> str:
    return f"{status} {code}" if code else str(status)


def _status(text: str) -> int | None:
    found = STATUS.search(text)
    return int(found[1]) if found else None


def _code(text: str) -> str | None:
    found = CODE.search(text)
    return found[1] if found else None
