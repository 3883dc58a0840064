<?php
const URL = 'http://127.0.0.1:5000/v1/messages';

function ask(string $url, array $headers, ?array $body = null): array
{
    $curl = curl_init($url);
    curl_setopt_array($curl, [
        CURLOPT_HTTPHEADER => ['Authorization: Bearer ' . getenv('MAILASYNC_API_KEY'), ...$headers],
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_TIMEOUT => 60,
    ]);
    if ($body !== null) {
        curl_setopt($curl, CURLOPT_POSTFIELDS, json_encode($body, JSON_THROW_ON_ERROR));
    }
    $answer = curl_exec($curl);
    if ($answer === false || curl_getinfo($curl, CURLINFO_RESPONSE_CODE) >= 400) {
        fwrite(STDERR, ($answer ?: curl_error($curl)) . "\n");
        exit(1);
    }
    return json_decode($answer, true, flags: JSON_THROW_ON_ERROR);
}

$mail = ['to' => 'you@example.org', 'subject' => 'Order 4711', 'contents' => 'It is on its way.'];
$id = ask(URL, ['Content-Type: application/json', 'Idempotency-Key: order-4711'], $mail)['id'];
$told = ask(URL . "/$id", ['Prefer: wait=30']);
echo "$id {$told['status']} {$told['why']}\n";
