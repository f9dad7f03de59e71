//! nginx, as the documentation sets it up. It takes over a socket that listens already, so that nobody else can
//! take its port and nobody has to wait for it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use shared::config::Env;

/// What an operator is told to use.
const DOCUMENTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/nginx.conf");

/// A running nginx. Dropping it ends it, and waits for that: killed, it would leave its workers behind.
pub struct Nginx {
    address: SocketAddr,
    process: Child,
}

impl Nginx {
    /// Serve the API at `api`, an address and a port, as documented; `more` is for all its servers.
    pub fn documented(directory: &Path, api: &str, more: &str) -> anyhow::Result<Self> {
        let text = fs::read_to_string(DOCUMENTED)?;
        let listener = reserve()?;
        let text = put(&text, "listen 80;", &format!("listen {};", listener.local_addr()?))?;
        let text = put(&text, "server 127.0.0.1:3001;", &format!("server {api};"))?;
        Self::start(directory, listener, &format!("{more}\n{text}"))
    }

    /// Serve on `listener` what `servers` say; one of them must listen at its address.
    pub fn start(directory: &Path, listener: TcpListener, servers: &str) -> anyhow::Result<Self> {
        let address = listener.local_addr()?;
        let home = directory.join(format!("nginx-{}", address.port()));
        fs::create_dir(&home)?;
        let configuration = home.join("nginx.conf");
        // It keeps nothing outside of its folder.
        let text = format!(
            "daemon off;\npid pid;\nevents {{}}\nhttp {{\naccess_log off;\n\
             client_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\nuwsgi_temp_path uwsgi;\n\
             scgi_temp_path scgi;\n{servers}\n}}\n"
        );
        fs::write(&configuration, text)?;
        let program = Env::of_process().text("NGINX_SERVER").unwrap_or("nginx").to_owned();
        // What accepts on a socket it was given expects that one not to block.
        listener.set_nonblocking(true)?;
        let process = Command::new(&program)
            .arg("-p")
            .arg(&home)
            .arg("-c")
            .arg(&configuration)
            .args(["-e", "stderr"])
            .env_clear()
            // Its word for sockets it is started with: this one is its standard input.
            .env("NGINX", "0;")
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(fs::File::create(home.join("log"))?)
            .spawn()
            .with_context(|| format!("could not start `{program}`"))?;
        Ok(Self { address, process })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it is, for HTTP.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // One that has ended has no need of it.
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        let _ = self.process.wait();
    }
}

/// A socket that listens on a free port.
pub fn reserve() -> anyhow::Result<TcpListener> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
}

fn put(text: &str, old: &str, new: &str) -> anyhow::Result<String> {
    ensure!(text.matches(old).count() == 1, "the documented configuration does not have one `{old}`");
    Ok(text.replace(old, new))
}
