//! Maps errors of the client to exceptions of `iovcache`.

use iovcache::client::ClientError;
use iovcache::shm::ResolveError;
use iovcache::shm::attach::AttachError;
use iovcache::{Code, Coded, ErrorKind};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// The name of the exception class; the module has one per kind.
fn class_of(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidArgument => "InvalidArgument",
        ErrorKind::NotFound => "NotFound",
        ErrorKind::AlreadyExists => "AlreadyExists",
        ErrorKind::Unavailable => "Unavailable",
        ErrorKind::ResourceExhausted => "ResourceExhausted",
        ErrorKind::FailedPrecondition => "FailedPrecondition",
        ErrorKind::Unauthenticated => "Unauthenticated",
        ErrorKind::PermissionDenied => "PermissionDenied",
        ErrorKind::DeadlineExceeded => "DeadlineExceeded",
        ErrorKind::Internal => "Internal",
    }
}

/// The error for bytes that are not those of the object any more.
pub(crate) fn stale(expected: u64) -> PyErr {
    of_resolve(ResolveError::Stale { expected, found: 0 })
}

pub(crate) fn of_client(error: ClientError) -> PyErr {
    let class = match &error {
        ClientError::ForkedProcess => "ForkedProcess",
        ClientError::Resolve(ResolveError::Stale { .. }) => "Stale",
        other => class_of(other.kind()),
    };
    let mut message = error.message();
    if let ClientError::Attach { .. } = &error {
        message += "; connect with remote=True to get the objects over the wire";
    }
    raise(class, &message, Some(error.code()))
}

pub(crate) fn of_resolve(error: ResolveError) -> PyErr {
    of_client(ClientError::from(error))
}

pub(crate) fn of_attach(error: AttachError) -> PyErr {
    raise(class_of(error.kind()), &error.message(), Some(error.code()))
}

pub(crate) fn closed(what: &'static str) -> PyErr {
    of_client(ClientError::Closed { what })
}

pub(crate) fn invalid(reason: &str) -> PyErr {
    of_client(ClientError::Argument { reason: reason.to_owned() })
}

fn raise(class: &str, message: &str, code: Option<Code>) -> PyErr {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    Python::attach(|py| {
        let made = || {
            let module = MODULE.get_or_try_init(py, || {
                PyModule::import(py, "iovcache._errors").map(Bound::unbind)
            })?;
            let class = module.bind(py).getattr(class)?;
            class.call1((message, code.map(|code| code.to_string())))
        };
        match made() {
            Ok(exception) => PyErr::from_value(exception),
            Err(error) => error,
        }
    })
}
