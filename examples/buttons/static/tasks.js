// Starts a task when a button is pressed, and polls its state every second until it has ended.
"use strict";

const POLL_MILLISECONDS = 1000;
const FINAL = ["SUCCESS", "FAILURE", "REVOKED"];

const form = document.querySelector("form");
const table = document.querySelector("#tasks");
const problem = document.querySelector("#problem");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = new URLSearchParams({ type: event.submitter.value });
  const task = await fetchJson(form.action, { method: "POST", body });
  if (task) {
    const row = table.insertRow(0);
    for (const text of [task.task_id, "PENDING", ""]) {
      row.insertCell().textContent = text;
    }
    watch(task.task_id, row);
  }
});

/** Update the row of a task until the task has ended. A request that fails is simply repeated. */
async function watch(id, row) {
  const task = await fetchJson(`${form.action}/${id}`);
  if (task) {
    row.cells[1].textContent = task.task_status;
    row.cells[2].textContent = task.task_result === null ? "" : JSON.stringify(task.task_result);
  }
  if (!task || !FINAL.includes(task.task_status)) {
    setTimeout(watch, POLL_MILLISECONDS, id, row);
  }
}

/** Return the JSON of the response, or null; then the page says what went wrong. */
async function fetchJson(url, options) {
  try {
    const response = await fetch(url, options);
    const data = await response.json();
    problem.textContent = response.ok ? "" : data.detail;
    return response.ok ? data : null;
  } catch (error) {
    problem.textContent = `No answer: ${error.message}`;
    return null;
  }
}
