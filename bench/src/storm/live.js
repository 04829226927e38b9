// Shows each event of /events: HTML that storm has rendered. After the report, none follows.
"use strict";

const main = document.querySelector("main");
const connection = document.getElementById("connection");
const events = new EventSource("/events");

events.addEventListener("open", () => {
  connection.textContent = "";
});

// The browser connects again by itself.
events.addEventListener("error", () => {
  connection.textContent = "No connection to storm. If it has ended without a report, its terminal says why.";
});

events.addEventListener("progress", (event) => {
  main.innerHTML = JSON.parse(event.data);
});

events.addEventListener("report", (event) => {
  events.close();
  connection.textContent = "The run has ended. This is its report; the page is gone when you reload it.";
  main.innerHTML = JSON.parse(event.data);
});
