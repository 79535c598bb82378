//! The session of a client on the node of its service: attaching, and the Unix socket beside it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_flight::FlightDescriptor;
use arrow_schema::Schema;
use tokio::net::UnixStream;

use super::connect::ServiceAddress;
use super::error::ClientError;
use super::service::{Attached, Client, Near, answer};
use crate::error::Coded as _;
use crate::secret::Secret;
use crate::shm::attach::{Attachment, process_name};
use crate::table::TableRequest;

impl Client {
    /// Whether the session was one of a service that is gone; it is then discarded.
    pub(super) async fn forget_lost_session(&self) -> bool {
        let mut attached = self.0.attached.lock().await;
        let lost = matches!(&*attached, Attached::Here(attachment) if attachment.over().is_some());
        if lost {
            *attached = Attached::Lost;
        }
        lost
    }

    /// Session on this node, if the service is on it.
    pub(super) async fn attachment(
        &self,
        request: &TableRequest,
    ) -> Result<Option<Arc<Attachment>>, ClientError> {
        let mut attached = self.0.attached.lock().await;
        let before = matches!(&*attached, Attached::Here(_) | Attached::Lost);
        match &*attached {
            Attached::Remote => return Ok(None),
            Attached::Here(attachment) if attachment.over().is_none() => {
                return Ok(Some(Arc::clone(attachment)));
            }
            Attached::Here(_) | Attached::Lost | Attached::NotTried => {}
        }
        // Beside a Unix socket the attach socket must exist; over TCP the service tells its path.
        let mut epoch = None;
        let (path, must) = match self.0.address.folder() {
            Some(folder) => (Some(folder.join("attach.sock")), true),
            None => {
                let place = self.attach_place(request).await?;
                epoch = place.as_ref().map(|(_, epoch)| epoch.clone());
                (place.map(|(path, _)| path), false)
            }
        };
        let path = path.filter(|path| must || path.exists());
        let Some(path) = path else {
            *attached = Attached::Remote;
            return Ok(None);
        };
        match self.attach(&path).await {
            Ok(attachment) => {
                let attachment = Arc::new(attachment);
                if !must && !self.come_near(&path, &attachment, epoch.as_deref()).await {
                    *attached = Attached::Remote;
                    return Ok(None);
                }
                *attached = Attached::Here(Arc::clone(&attachment));
                self.note_answer();
                Ok(Some(attachment))
            }
            Err(error) if self.is_restarting(&error, before).await => {
                Err(ClientError::Lost { reason: error.to_string() })
            }
            Err(error) if must => Err(error),
            Err(_) => {
                *attached = Attached::Remote;
                Ok(None)
            }
        }
    }

    /// Whether attaching failed because the service is being started again: a running one would accept
    /// this process as `before`, and one that is not there has none of its sockets.
    async fn is_restarting(&self, error: &ClientError, before: bool) -> bool {
        let is_gone = async || {
            let ServiceAddress::Unix(path) = &self.0.address else { return false };
            // Other errors are those of this process, such as too many open files.
            let none_listens = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
            UnixStream::connect(path).await.is_err_and(|error| none_listens.contains(&error.kind()))
        };
        error.kind().is_transient() && (before || is_gone().await)
    }

    /// Sends further requests through the Unix socket beside this attach socket, unless it cannot
    /// be reached or belongs to another service than that reached over TCP.
    async fn come_near(
        &self,
        attach: &Path,
        attachment: &Arc<Attachment>,
        epoch: Option<&str>,
    ) -> bool {
        if epoch != Some(&*attachment.epoch().to_string()) {
            return false;
        }
        let Some(folder) = attach.parent() else { return false };
        let url = format!("grpc+unix://{}", folder.join("flight.sock").display());
        let Ok(address) = ServiceAddress::parse(&url) else { return false };
        let Ok(flight) = address.connect(&url, &self.0.options).await else { return false };
        let attachment = Arc::downgrade(attachment);
        self.0.near.store(Some(Arc::new(Near { flight, attachment })));
        true
    }

    /// Path of the service's attach socket, and its epoch.
    async fn attach_place(
        &self,
        request: &TableRequest,
    ) -> Result<Option<(PathBuf, String)>, ClientError> {
        let descriptor = FlightDescriptor::new_cmd(request.to_json()?);
        let result = self.0.flight.clone().get_schema(descriptor).await?.into_inner();
        self.note_answer();
        let schema = Schema::try_from(&result).map_err(|error| answer(&error.to_string()))?;
        let said = |key: &str| schema.metadata().get(key);
        let place = said("iovcache.attach").zip(said("iovcache.epoch"));
        Ok(place.map(|(path, epoch)| (PathBuf::from(path), epoch.clone())))
    }

    async fn attach(&self, path: &Path) -> Result<Attachment, ClientError> {
        let (path, options, looks_up) = (path.to_owned(), self.0.options.clone(), self.0.looks_up);
        let opened = tokio::task::spawn_blocking(move || {
            let consumer = options.consumer.unwrap_or_else(process_name);
            let token = options.token.as_ref().map(Secret::reveal);
            let opened = match looks_up {
                true => Attachment::open_local(&path, &consumer, token),
                false => Attachment::open(&path, &consumer, token),
            };
            opened.map_err(|error| ClientError::Attach { path, error })
        });
        opened.await.map_err(|error| answer(&error.to_string()))?
    }
}
