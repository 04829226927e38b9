//! The floor of the executor: the same fixed response as `floor`, with glommio's own sockets, used as its manual shows.
//! There is one task for each connection, and one write for all requests of a read.
//!
//! `floor_glommio 127.0.0.1:8091 --threads 2`

use bench::fixed::{FixedResponses, FloorOptions};
use clap::Parser;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, spawn_local};
use stampede::system::host;
use std::net::SocketAddr;
use std::rc::Rc;

const READ_BYTES: usize = 16 * 1024;

/// Bytes of memory that each executor registers with io_uring.
const IO_BYTES: usize = 512 * 1024;

fn main() {
    let FloorOptions { address, threads, .. } = FloorOptions::parse();
    std::thread::scope(|scope| {
        for placement in host::placements(threads) {
            scope.spawn(move || {
                let executor = LocalExecutorBuilder::new(placement).io_memory(IO_BYTES).make();
                let executor = executor.unwrap_or_else(|error| fail(&host::refusal(error)));
                executor.run(serve(address)).unwrap_or_else(|error| fail(&error));
            });
        }
    });
}

/// Ends the process: a floor with a missing thread would give a wrong figure.
fn fail(reason: &dyn std::fmt::Display) -> ! {
    eprintln!("floor_glommio: {reason}");
    std::process::exit(1)
}

async fn serve(address: SocketAddr) -> Result<(), glommio::GlommioError<()>> {
    let responses = Rc::new(FixedResponses::new(READ_BYTES));
    // glommio sets SO_REUSEPORT.
    let listener = TcpListener::bind(address)?;
    loop {
        let client = listener.accept().await?;
        client.set_nodelay(true)?;
        let responses = responses.clone();
        spawn_local(async move { answer(client, &responses).await }).detach();
    }
}

/// Responds until the client disconnects.
async fn answer(mut client: TcpStream, responses: &FixedResponses) {
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(bytes @ 1..) = client.read(&mut buffer).await {
        if client.write_all(responses.to(&buffer[..bytes])).await.is_err() {
            return;
        }
    }
}
