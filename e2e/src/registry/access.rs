//! Repositories that want credentials, as registries do it: a user and a password (Basic), or a token from
//! the registry's token service (Bearer).

use std::collections::HashMap;

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

use super::requests::{Asked, RequestKind};

/// Who may have a repository's images.
#[derive(Clone, Debug)]
pub struct Access {
    pub(super) scheme: Scheme,
    users: Vec<User>,
}

/// How a client proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// User and password with each request.
    Basic,
    /// A token from `/token` at the same address, which wants user and password.
    Bearer,
}

/// A user of the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password.
    pub password: String,
}

impl User {
    /// A user.
    pub fn new(name: &str, password: &str) -> Self {
        Self {
            name: name.to_owned(),
            password: password.to_owned(),
        }
    }

    /// As a client of this user sends it.
    fn basic(&self) -> String {
        format!(
            "Basic {}",
            base64(&format!("{}:{}", self.name, self.password))
        )
    }

    /// The token that the token service gives to this user for a repository.
    pub(super) fn token(&self, repository: &str) -> String {
        base64(&format!("{}:{}:{repository}", self.name, self.password))
    }
}

impl Access {
    /// For these users.
    pub fn new(scheme: Scheme, users: &[User]) -> Self {
        Self {
            scheme,
            users: users.to_vec(),
        }
    }

    /// The user whose password came with the request.
    fn user(&self, headers: &HeaderMap) -> Option<&User> {
        let sent = sent(headers)?;
        self.users.iter().find(|user| user.basic() == sent)
    }

    fn allows(&self, headers: &HeaderMap, repository: &str) -> bool {
        match self.scheme {
            Scheme::Basic => self.user(headers).is_some(),
            Scheme::Bearer => {
                let tokens = self.users.iter().map(|user| user.token(repository));
                let mut tokens = tokens.map(|token| format!("Bearer {token}"));
                tokens.any(|token| sent(headers) == Some(&token))
            }
        }
    }
}

/// What a request is answered because of who sends it.
pub(super) enum Gatekeeper {
    /// The registry's answer.
    Passes,
    /// 401, with this challenge.
    Challenges(Scheme),
    /// This token.
    Gives(String),
}

/// The repositories that want credentials.
#[derive(Debug, Default)]
pub(super) struct Doors(HashMap<String, Access>);

impl Doors {
    pub(super) fn set(&mut self, repository: &str, access: Option<Access>) {
        match access {
            Some(access) => self.0.insert(repository.to_owned(), access),
            None => self.0.remove(repository),
        };
    }

    pub(super) fn meet(&self, asked: &Asked, headers: &HeaderMap) -> Gatekeeper {
        let repository = asked.repository.as_deref().unwrap_or_default();
        let Some(access) = self.0.get(repository) else {
            return Gatekeeper::Passes;
        };
        if asked.kind == RequestKind::Token {
            return match access.user(headers) {
                Some(user) => Gatekeeper::Gives(user.token(repository)),
                None => Gatekeeper::Challenges(Scheme::Basic),
            };
        }
        if access.allows(headers, repository) {
            Gatekeeper::Passes
        } else {
            Gatekeeper::Challenges(access.scheme)
        }
    }
}

fn sent(headers: &HeaderMap) -> Option<&str> {
    headers.get(AUTHORIZATION)?.to_str().ok()
}

pub(crate) fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
