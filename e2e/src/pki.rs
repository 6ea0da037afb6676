//! The certificates of a cluster, made again for each run.
//!
//! As on a cluster made by hand with care: one authority for the API server and its clients, a
//! second for etcd, so that a client of the API server cannot be a client of etcd; a key pair for
//! service account tokens. Keys are ECDSA P-256: made in a millisecond, and good for `ES256` tokens.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// Who a certificate is for.
#[derive(Debug, Clone, Default)]
pub struct Subject<'a> {
    /// The user, for the API server; any name for a server.
    pub name: &'a str,
    /// The group, for the API server.
    pub group: Option<&'a str>,
    /// The names and addresses under which it serves; none for a client.
    pub serves: &'a [String],
}

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM (PKCS #8), readable by its owner only.
    pub key: PathBuf,
}

/// A certificate authority that keeps what it issues in one folder.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Makes an authority called `name`; its certificate is `folder/ca.pem`.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn new(folder: &Path, name: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(folder.join("ca.pem"), issuer.pem())?;
        Ok(Self {
            folder: folder.to_owned(),
            issuer,
        })
    }

    /// The authority's certificate, PEM.
    pub fn cert(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Issues `file.pem` and `file-key.pem`: a client's certificate, and a server's too if the
    /// subject serves.
    ///
    /// # Errors
    /// If a name is invalid, or the folder cannot be written.
    pub fn issue(&self, file: &str, subject: &Subject<'_>) -> anyhow::Result<Leaf> {
        let mut params = CertificateParams::new(subject.serves)?;
        params
            .distinguished_name
            .push(DnType::CommonName, subject.name);
        if let Some(group) = subject.group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !subject.serves.is_empty() {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        let leaf = Leaf {
            cert: self.folder.join(format!("{file}.pem")),
            key: self.folder.join(format!("{file}-key.pem")),
        };
        fs::write(&leaf.cert, cert.pem())?;
        write_secret(&leaf.key, &key.serialize_pem())?;
        Ok(leaf)
    }
}

/// The key pair that signs service account tokens.
#[derive(Debug, Clone)]
pub struct TokenKeys {
    /// Signs tokens, PEM (PKCS #8).
    pub private: PathBuf,
    /// Verifies tokens, PEM.
    pub public: PathBuf,
}

impl TokenKeys {
    /// Makes the pair in `folder`.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let keys = Self {
            private: folder.join("tokens-key.pem"),
            public: folder.join("tokens.pub"),
        };
        write_secret(&keys.private, &key.serialize_pem())?;
        fs::write(&keys.public, key.public_key_pem())?;
        Ok(keys)
    }
}

/// The names under which an API server at `address` is reached, also from within pods.
pub fn apiserver_names(address: IpAddr) -> Vec<String> {
    let service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let names = ["localhost", "kubernetes.default.svc.cluster.local"];
    let addresses = [address.to_string(), "127.0.0.1".to_owned()];
    service
        .iter()
        .chain(&names)
        .map(ToString::to_string)
        .chain(addresses)
        .collect()
}

fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;

    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("write {}", path.display()))
}
