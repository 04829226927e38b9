//! The floor of the executor: the same fixed answer as `floor`, by glommio's own sockets as its manual has them: one
//! task for each connection, one read, one write for all requests in it.
//!
//! `floor_glommio 127.0.0.1:8091 --threads 2`

use bench::fixed::{Answers, Settings};
use clap::Parser;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, spawn_local};
use stampede::host;
use std::net::SocketAddr;
use std::rc::Rc;

const READ_BYTES: usize = 16 * 1024;

fn main() {
    let Settings { address, threads } = Settings::parse();
    std::thread::scope(|scope| {
        for placement in host::placements(threads) {
            scope.spawn(move || {
                let executor = LocalExecutorBuilder::new(placement).io_memory(host::IO_MEMORY).make();
                let executor = executor.unwrap_or_else(|error| fail(&host::refusal(error)));
                executor.run(serve(address)).unwrap_or_else(|error| fail(&error));
            });
        }
    });
}

/// A floor with a thread missing measures nothing.
fn fail(reason: &dyn std::fmt::Display) -> ! {
    eprintln!("floor_glommio: {reason}");
    std::process::exit(1)
}

async fn serve(address: SocketAddr) -> Result<(), glommio::GlommioError<()>> {
    let answers = Rc::new(Answers::new(READ_BYTES));
    // It sets SO_REUSEPORT by itself.
    let listener = TcpListener::bind(address)?;
    loop {
        let client = listener.accept().await?;
        client.set_nodelay(true)?;
        let answers = answers.clone();
        spawn_local(async move { answer(client, &answers).await }).detach();
    }
}

/// Until the client goes.
async fn answer(mut client: TcpStream, answers: &Answers) {
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(bytes @ 1..) = client.read(&mut buffer).await {
        if client.write_all(answers.to(&buffer[..bytes])).await.is_err() {
            return;
        }
    }
}
